"""How a reply is written, whole and in chunks: what each endpoint's format can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from qwenkit.core import Delta, Usage
from qwenkit.serve.engine.messages import Accepted
from qwenkit.serve.errors import ServeError
from qwenkit.serve.replies.written import Written

Chunks = list[dict[str, Any]]


class Format(Protocol):
    """Choices are told apart by the number of their prompt and their own number in it.

    named: whether events have their type as a name, and the last of them is the end, or the word [DONE].
    """

    named: bool

    def opening(self, accepted: Sequence[Accepted]) -> Chunks:
        """Chunks before any text."""

    def chunk(self, prompt: int, delta: Delta) -> Chunks:
        """Chunks for new text."""

    def whole(self, accepted: Sequence[Accepted], written: dict[tuple[int, int], Written]) -> dict[str, Any]:
        """The reply without a stream, but for its usage."""

    def closing(self, usage: Usage) -> Chunks:
        """Chunks after all text."""

    def usage(self, usage: Usage) -> dict[str, Any]:
        """Of a reply without a stream."""

    def failure(self, error: ServeError) -> dict[str, Any]:
        """The chunk that ends a stream which cannot go on."""
