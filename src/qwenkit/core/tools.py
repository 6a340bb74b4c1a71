"""What the assistant may call, and whether it must."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from qwenkit.core.errors import RequestError

ToolMode: TypeAlias = Literal["auto", "required", "none"]

_NAME = re.compile(r"[\w.-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A function that somebody else runs.

    name: letters of any script, digits, `_`, `.` and `-`, up to 64. parameters: a JSON schema of an object,
    or the list of {name, description, required, schema} of Qwen's own examples; None takes no arguments.
    human_name: what ReAct's sentence calls it beside its name.

    Raises RequestError for another name.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | Sequence[Any] | None = None
    human_name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise RequestError(
                f"The tool's name {self.name!r:.100} is not one that can be called.",
                "Use 1 to 64 letters, digits, '_', '.' or '-'.",
            )


@dataclass(frozen=True)
class ToolChoice:
    """mode: whether the assistant may call, must, or may not. names: the only tools it may call; None is all.
    parallel: whether it may ask for several calls at once."""

    mode: ToolMode = "auto"
    names: tuple[str, ...] | None = None
    parallel: bool = True

    @staticmethod
    def named(name: str) -> ToolChoice:
        """Exactly one call, of this tool."""
        return ToolChoice("required", (name,), parallel=False)


@dataclass(frozen=True)
class ToolUse:
    """The tools of one request and the choice among them. Raises RequestError for two tools of one name, a
    choice that names none of them, or one that demands a call where there is nothing to call."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = field(default_factory=ToolChoice)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tuple(self.tools))
        names = [tool.name for tool in self.tools]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise RequestError(f"Two tools are called {name!r}.", "Give each a name of its own.")
        for name in self.choice.names or ():
            if name not in names:
                raise RequestError(
                    f"The tool choice names {name!r:.100}, which is not among the tools.",
                    f"They are {', '.join(map(repr, names[:20])) or 'none'}.",
                )
        if self.choice.mode == "required" and not self.callable:
            raise RequestError("The tool choice demands a call, and there are no tools.", "Give some.")

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that the choice leaves."""
        names = self.choice.names
        return tuple(tool for tool in self.tools if names is None or tool.name in names)
