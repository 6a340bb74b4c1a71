"""Several tokens a step: guess, check all guesses in one pass, keep what the model itself would have said.

Checking is draw and compare: at each place the sequence's own sampler draws from the model's row, with the
random number it would have used there, and the next place counts only if the guess was that token. The text
is the same, greedy or sampled, as without guesses. (Rejection sampling, Leviathan et al. 2023,
arXiv:2211.17192, accepts more of a good draft model's guesses but changes what a seed means.)

Knows token ids and counts; nothing of tensors, samplers or where guesses come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from qwenkit.engine.draft_length import DraftLength, RowCost, share_rows
from qwenkit.engine.proposer import DraftRequest, Proposer


def verify(
    drafts: Sequence[int], draw: Callable[[int], int], ended: Callable[[int], bool] = lambda _: False
) -> list[int]:
    """The new tokens: the drafts that are what the model says, from the first, and one token more.

    draw(i): the model's token after i drafts, 0 <= i <= len(drafts), called once for each i in order and
    only where every draft before was right: it may advance a random stream. ended(token), called after
    each draw: whether the text ends with it; then nothing more is drawn and the last token may be a draft.
    """
    tokens = []
    for i in range(len(drafts) + 1):
        token = draw(i)
        tokens.append(token)
        if ended(token) or i == len(drafts) or token != drafts[i]:
            break
    return tokens


class Speculator:
    """Chooses the drafts of each step, for sequences whose text may or may not be guessable.

    proposer: where guesses come from. cost: what a step of so many rows costs on this machine. limit: most
    guesses of a sequence in a step. Not thread-safe.
    """

    def __init__(self, proposer: Proposer, cost: RowCost, limit: int = 16) -> None:
        self._proposer = proposer
        self._cost = lru_cache(maxsize=4096)(cost)  # asked for the same few row counts again and again
        self._limit = limit
        self._lengths: dict[int, DraftLength] = {}

    def drafts(
        self, texts: Mapping[int, Sequence[int]], rows: int | None = None
    ) -> dict[int, tuple[int, ...]]:
        """Guesses for the sequences that decode in this step, by id; those without any are left out.

        texts: prompt and reply of each. rows: of the step without guesses, prompts included.
        """
        rows = max(rows or 0, len(texts))
        requests, lengths = [], []
        for id_, tokens in texts.items():
            length = self._lengths.get(id_)
            if length is None:
                length = self._lengths[id_] = DraftLength(self._cost, self._limit)
            if count := length.ask(rows):
                requests.append(DraftRequest(id_, tokens, count))
                lengths.append(length)
        if not requests:
            return {}
        guesses = self._proposer.propose(requests)
        chances = [length.chance for length in lengths]
        counts = share_rows(chances, [len(guess) for guess in guesses], rows, self._cost)
        chosen = {}
        for request, length, guess, count in zip(requests, lengths, guesses, counts, strict=True):
            if count:
                chosen[request.sequence_id] = guess[:count]
            elif guess:
                length.postpone()
        return chosen

    def record(self, sequence_id: int, proposed: int, accepted: int) -> None:
        """Of the `proposed` guesses that a step really checked, `accepted` were right; any id is fine."""
        if (length := self._lengths.get(sequence_id)) is not None:
            length.record(proposed, accepted)

    def forget(self, sequence_id: int) -> None:
        """The sequence has ended."""
        self._lengths.pop(sequence_id, None)
        self._proposer.forget(sequence_id)
