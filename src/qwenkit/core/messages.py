"""What people and models say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["system", "user", "assistant", "tool", "function"]

History: TypeAlias = list[tuple[str, str]]
"""Finished turns, oldest first: (what the user asked, what the assistant answered)."""


@dataclass(frozen=True)
class ToolCall:
    """One call the assistant asks for; `arguments` is the JSON text as the model wrote it."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. `name` is the tool a `tool`/`function` message answers for."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""
