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


@dataclass(frozen=True)
class Control:
    """Text of a template that is one control token where the vocabulary has it, and plain text elsewhere."""

    text: str


@dataclass(frozen=True)
class Turn:
    """A message as the model reads it; strings in `parts` are plain text, whatever they say.

    open: the model goes on with this turn, which must be the last.
    """

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Control, ...]
    open: bool = False
