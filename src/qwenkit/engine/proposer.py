"""The place where guesses come from: n-grams of the text itself, or a small model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class DraftRequest:
    """Guess up to `count` >= 1 tokens that follow `tokens`, the whole of one sequence: prompt and reply.

    Between two requests of one sequence its tokens only grow, by what the model itself has drawn, so a
    proposer may keep what it computed of them. It must not keep or change the sequence object itself.
    """

    sequence_id: int
    tokens: Sequence[int]
    count: int


class Proposer(ABC):
    """Guesses what comes next in many sequences at once.

    A wrong guess costs time and nothing else: the model draws its own token at every place and goes on only
    while that is the guess (speculate.verify). So a proposer may be as wrong, random or lazy as it likes.
    Guesses are never told back: what was accepted is in the tokens of the next request, and a proposer with
    a cache of its own drops what it computed beyond the tokens that the next request begins with.
    One thread calls; requests of different sequences come and go in any order and number.
    """

    @abstractmethod
    def propose(self, requests: Sequence[DraftRequest]) -> list[tuple[int, ...]]:
        """For each request, in order, at most `count` tokens; none where it has no idea."""

    @abstractmethod
    def forget(self, sequence_id: int) -> None:
        """The sequence has ended, its id never comes again: free what is kept of it. Unknown ids are fine."""
