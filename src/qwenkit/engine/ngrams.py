"""Drafts out of a text's own past: what followed the last time its latest words were said.

Prompt lookup (Saxena 2023): no model, a few microseconds a token, and long right guesses wherever text is
copied: code that is edited, documents that are quoted, lists that go on. Knows token ids only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qwenkit.engine.proposer import DraftRequest, Proposer

_TOKEN_BITS = 32
"""Room for one token id in a key; n ids make one integer, smaller and quicker than a tuple of them."""


class NgramProposer:
    """The n-grams of one text, prompt and reply, and where each was last followed by something.

    longest, shortest: lengths of the suffixes that are looked for. Tokens are filed when a proposal is next
    asked for, each once: O(1) amortised a token, and nothing for a text that is never asked. Memory is
    one table entry for each token and length.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"N-grams from {shortest} to {longest} tokens: 1 <= shortest <= longest.")
        self._tokens: list[int] = []
        self._lengths = range(longest, shortest - 1, -1)
        self._next: dict[int, dict[int, int]] = {n: {} for n in self._lengths}  # n-gram -> place behind it
        self._masks = {n: (1 << n * _TOKEN_BITS) - 1 for n in self._lengths}
        self._filed = 0  # tokens whose n-grams have been filed with what follows them
        self._key = 0  # of the `longest` tokens before self._filed

    def __len__(self) -> int:
        """Tokens added so far."""
        return len(self._tokens)

    def add(self, tokens: Iterable[int]) -> None:
        """The text has grown by `tokens`."""
        self._tokens.extend(tokens)

    def propose(self, max_tokens: int) -> tuple[int, ...]:
        """Up to `max_tokens` that followed the latest earlier occurrence of the longest known suffix.

        Where that occurrence runs into the end of the text, the text repeats itself and so does the
        proposal. Empty when no suffix of the shortest length or more was ever said before.
        """
        if max_tokens < 1:
            return ()
        self._file()
        for n in self._lengths:
            place = self._next[n].get(self._key & self._masks[n]) if len(self._tokens) >= n else None
            if place is not None:
                return _copied(self._tokens, place, max_tokens)
        return ()

    def _file(self) -> None:
        """Enter every n-gram that has something behind it; the suffix of the text itself has not."""
        keep, key = self._masks[self._lengths[0]], self._key
        for place in range(self._filed, len(self._tokens)):
            for n in self._lengths:
                if place >= n:
                    self._next[n][key & self._masks[n]] = place
            key = (key << _TOKEN_BITS | self._tokens[place]) & keep
        self._filed, self._key = len(self._tokens), key


class NgramLookup(Proposer):
    """An NgramProposer for each sequence."""

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._bounds = longest, shortest
        self._texts: dict[int, NgramProposer] = {}

    def propose(self, requests: Sequence[DraftRequest]) -> list[tuple[int, ...]]:
        return [self._propose(request) for request in requests]

    def forget(self, sequence_id: int) -> None:
        self._texts.pop(sequence_id, None)

    def _propose(self, request: DraftRequest) -> tuple[int, ...]:
        text = self._texts.get(request.sequence_id)
        if text is None:
            text = self._texts[request.sequence_id] = NgramProposer(*self._bounds)
        text.add(request.tokens[len(text) :])
        return text.propose(request.count)


def _copied(tokens: Sequence[int], place: int, count: int) -> tuple[int, ...]:
    found = tuple(tokens[place : place + count])
    return (found * -(-count // len(found)))[:count]
