"""What a reply with tool calls says, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from qwenkit.core import FinishReason, ToolCall


@dataclass(frozen=True)
class Content:
    """Text for the reader, which stands in the reply as it is. start: characters of the reply before it; two
    that say the same are equal wherever they stand."""

    text: str
    start: int = field(default=0, compare=False)


@dataclass(frozen=True)
class CallStarted:
    """The reply asks for a call; `index` counts them from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """The next piece of a call's arguments, a JSON object as the model writes it."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnded:
    """The call's arguments are whole."""

    index: int


CallEvent: TypeAlias = Content | CallStarted | Arguments | CallEnded


class CallParser(Protocol):
    """Reads one reply. The events of a text are the same however it is split, but for where Content and
    Arguments are split; markers of the format are in none of them."""

    def push(self, text: str) -> list[CallEvent]:
        """Take the next piece; what is certain now."""

    def finish(self) -> list[CallEvent]:
        """What was held back, now that no more comes."""


class Spoken:
    """Sums up events: `content`, `calls` in their order, and whether the last of them is whole."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._names: list[str] = []
        self._arguments: list[list[str]] = []
        self.whole = True

    def add(self, events: Iterable[CallEvent]) -> None:
        for event in events:
            if isinstance(event, Content):
                self._content.append(event.text)
            elif isinstance(event, CallStarted):
                self._names.append(event.name)
                self._arguments.append([])
                self.whole = False
            elif isinstance(event, Arguments):
                self._arguments[event.index].append(event.text)
            else:
                self.whole = True

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Without ids, which whoever passes them on gives."""
        pairs = zip(self._names, self._arguments, strict=True)
        return tuple(ToolCall(name, "".join(parts)) for name, parts in pairs)

    def reason(self, ended: FinishReason) -> FinishReason:
        """Why the reply ended, when the text ended for this reason: a call cut short stays what it is."""
        return "tool_calls" if ended == "stop" and self._names and self.whole else ended


def read(parser: CallParser, text: str) -> Spoken:
    """A whole reply."""
    spoken = Spoken()
    spoken.add(parser.push(text))
    spoken.add(parser.finish())
    return spoken


def possible_prefix(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    most = min(len(text), len(marker) - 1)
    return next((n for n in range(most, 0, -1) if marker.startswith(text[-n:])), 0)
