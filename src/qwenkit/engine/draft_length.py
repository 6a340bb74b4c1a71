"""How many guesses are worth checking.

Checking m guesses of a sequence adds m rows to the step. On a CPU, where a step mostly reads weights, eight
rows cost a third more than one, so even poor guesses may pay; on a full batch they must be good. Knows
acceptance and cost; nothing of tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TypeAlias

RowCost: TypeAlias = Callable[[int], float]
"""What a step of that many rows costs, in any unit; never falls as rows are added."""

_FORGET = 0.75
"""What the past weighs against the latest check: about four checks are remembered."""

_FIRST_GUESS = (1.0, 2.0)
"""Right ones of so many, before anything was measured."""

_PROBE = 2
"""Guesses checked to find out whether the text repeats itself by now."""

_PROBE_CHANCE = 0.7
"""How likely a probe's guesses are taken to be when rows are shared out: finding out has a value too."""

_SPACING = (8, 64)
"""Steps between probes after the first one that failed, and after many."""


class CostTable:
    """A RowCost measured at some row counts: straight lines between them and on from the last two."""

    def __init__(self, measured: Mapping[int, float]) -> None:
        points = sorted(measured.items())
        if len(points) < 2 or points[0][0] != 1 or points[0][1] <= 0:
            raise ValueError(f"The cost of 1 row and of more is needed, not {dict(points)}.")
        if any(after < before for (_, before), (_, after) in pairwise(points)):
            raise ValueError(f"More rows never cost less; not so in {dict(points)}.")
        self._points = points
        self._rows = [rows for rows, _ in points]

    def __call__(self, rows: int) -> float:
        at = min(max(bisect_left(self._rows, rows), 1), len(self._points) - 1)
        (r0, c0), (r1, c1) = self._points[at - 1 : at + 1]
        return c0 + (c1 - c0) * (rows - r0) / (r1 - r0)


class DraftLength:
    """How many guesses one sequence should ask for, learnt from how many were right.

    A text that repeats itself soon gets up to `limit`. When guesses no longer pay, they stop but for
    probes, each twice as many steps after the last (at most 64) until one is right.
    """

    def __init__(self, cost: RowCost, limit: int = 16) -> None:
        if limit < 1:
            raise ValueError(f"limit is {limit}; at least one guess must be allowed.")
        self.limit = limit
        self._cost = cost
        self._right, self._checked = _FIRST_GUESS
        self._probing = False
        self._pause, self._spacing = 0, _SPACING[0]

    @property
    def chance(self) -> float:
        """How likely a guess is right when those before it were; of a probe, what it is taken to be."""
        measured = self._right / self._checked
        return max(measured, _PROBE_CHANCE) if self._probing else measured

    def ask(self, rows: int = 1) -> int:
        """Guesses to ask for in this step, of `rows` >= 1 rows without any; call it once a step."""
        self._probing = False
        best = _most_worth(self.chance, self.limit, rows, self._cost)
        if best:
            return best
        if self._pause:
            self._pause -= 1
            return 0
        self._probing = True
        return min(_PROBE, self.limit)

    def postpone(self) -> None:
        """The guesses of this step were not worth a row beside those of other sequences."""
        if self._probing:
            self._pause = self._spacing

    def record(self, proposed: int, accepted: int) -> None:
        """Of `proposed` guesses that were checked, so many were right until one was not."""
        if not proposed:
            return
        self._right = self._right * _FORGET + accepted
        self._checked = self._checked * _FORGET + min(accepted + 1, proposed)
        if accepted:
            self._spacing = _SPACING[0]
        elif self._probing:
            self._pause, self._spacing = self._spacing, min(2 * self._spacing, _SPACING[1])


def share_rows(chances: Sequence[float], offered: Sequence[int], rows: int, cost: RowCost) -> list[int]:
    """How many of each sequence's `offered` guesses to check, so that a step yields most for its time.

    chances: see DraftLength.chance; rows: of the step without guesses, at least one for each sequence.
    Exact for independent guesses: taking the likeliest guess first is best for every number of rows, and
    all numbers are tried.
    """
    # The j-th guess of a sequence is used if it and all before it are right: chance ** j, falling in j.
    best_first = [(-chance, i) for i, chance in enumerate(chances) if offered[i]]
    heapify(best_first)
    left = list(offered)
    order: list[int] = []  # whose guess is taken first, second, ...
    expected, best, best_worth = float(rows), 0, rows / cost(rows)
    while best_first:
        likely, i = heappop(best_first)
        order.append(i)
        expected -= likely
        if (worth := expected / cost(rows + len(order))) > best_worth:
            best, best_worth = len(order), worth
        left[i] -= 1
        if left[i]:
            heappush(best_first, (likely * chances[i], i))
    counts = [0] * len(offered)
    for i in order[:best]:
        counts[i] += 1
    return counts


def _most_worth(chance: float, limit: int, rows: int, cost: RowCost) -> int:
    """Guesses of one sequence among `rows` that yield most for their time; 0 if none pay."""
    return share_rows([chance], [limit], rows, cost)[0]
