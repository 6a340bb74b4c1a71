"""What a run tells whoever waits for it. This one says nothing; the command line has one that does."""

from __future__ import annotations

from collections.abc import Mapping


class Watch:
    """Told as things happen. A run calls `begin` once before the `tokens` of each piece of work."""

    def begin(self, what: str, tokens: int) -> None:
        """`what` begins, and is done when so many tokens went through a stage of a block."""

    def tokens(self, count: int) -> None:
        """So many went through since the last call."""

    def layer(self, number: int, errors: Mapping[str, float], seconds: float) -> None:
        """A block is rounded and kept. errors: of each linear layer, as a share of its output's square."""

    def note(self, line: str) -> None:
        """Something to know."""
