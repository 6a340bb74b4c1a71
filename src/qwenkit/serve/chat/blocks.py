"""A reply as blocks, one after the other: text, or a call; what the endpoints with such replies write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from qwenkit.core import Delta, FinishReason, TokenLogprob
from qwenkit.serve.chat.own_tokens import OwnTokens
from qwenkit.serve.chat.reader import ReplyReader
from qwenkit.text.calls import Arguments, CallParser, CallStarted, Content


@dataclass
class Block:
    """name, id: of the tool and the call; None for text. `text` is a call's arguments, as JSON. tokens: of
    text, where log probabilities were asked for. status: cut short, it is incomplete."""

    index: int
    text: str = ""
    name: str | None = None
    id: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    status: Literal["in_progress", "completed", "incomplete"] = "in_progress"


@dataclass(frozen=True)
class Change:
    """What happened to which block, which may have gone on changing since. text, tokens: what is new."""

    kind: Literal["opened", "grown", "closed"]
    block: Block
    text: str = ""
    tokens: Sequence[TokenLogprob] = ()


class Blocks:
    """One choice's reply. parser: of the request's Calling; None where all is text."""

    def __init__(self, parser: CallParser | None) -> None:
        self.all: list[Block] = []
        self._reader = ReplyReader(parser)
        self._tokens = OwnTokens()
        self._open: Block | None = None

    def read(self, delta: Delta) -> list[Change]:
        """What the next piece of the reply changes; with its finish_reason, the last block is closed."""
        changes: list[Change] = []
        self._tokens.read(delta)
        for event in self._reader.read(delta):
            if isinstance(event, Content):
                if self._open is None or self._open.name is not None:
                    self._begin(Block(len(self.all)), changes)
                end = event.start + len(event.text)
                self._grow(event.text, changes, self._tokens.take(event.start, end))
            elif isinstance(event, CallStarted):
                self._begin(Block(len(self.all), "", event.name, self._reader.id(event.index)), changes)
            elif isinstance(event, Arguments):
                self._grow(event.text, changes)
            else:
                self._close(changes)
        if delta.finish_reason is not None:
            self._close(changes, whole=delta.finish_reason == "stop")
        return changes

    def reason(self, ended: FinishReason) -> FinishReason:
        """ "tool_calls" for a reply that ended with a whole call."""
        return self._reader.reason(ended)

    def _begin(self, block: Block, changes: list[Change]) -> None:
        self._close(changes)
        self.all.append(block)
        self._open = block
        changes.append(Change("opened", block))

    def _grow(self, text: str, changes: list[Change], tokens: Sequence[TokenLogprob] = ()) -> None:
        if self._open is not None and text:
            self._open.text += text
            self._open.tokens += tokens
            changes.append(Change("grown", self._open, text, tokens))

    def _close(self, changes: list[Change], *, whole: bool = True) -> None:
        if self._open is not None:
            self._open.status = "completed" if whole else "incomplete"
            changes.append(Change("closed", self._open))
            self._open = None
