"""Choosing tokens from logits in plain torch, on any device: the definition, and the oracle for the kernels.

One arithmetic, so that a seed means the same text on every machine and in every batch: a score is
(logit - best) / temperature in float32, its mass is exp(score) in units of 2^-40, a whole number made by the
float32 operations that `masses` writes out, and everything after that is sums of whole numbers. No result
depends on the order of a sum or on a mathematical library. What is less likely than the best by a factor of
2^41 has no mass.

Knows rows of logits and numbers; nothing of requests, penalties or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Edits: TypeAlias = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Ids, no two the same, and the logits to use for them instead of the row's."""

Allowed: TypeAlias = NDArray[np.uint32]
"""A bit for each id, the lowest bit of the first word first: whether it may be chosen. [ceil(size / 32)]."""

Likely: TypeAlias = tuple[float, list[tuple[int, float]]]
"""Log probability of a token, and the likeliest (id, log probability), best first."""

UNIT = 2**53
"""Uniform numbers and nucleus masses are counted in 2^-53, the resolution of random float64."""

COLDEST = 1e-30
"""Below this a temperature vanishes in float32; at it every lesser logit is already at minus infinity."""

_NUCLEUS_GUESSES = (256, 4096)
"""Tokens taken for a nucleus before a whole vocabulary is sorted; 256 suffice for all but flat rows."""


@dataclass(frozen=True)
class Draw:
    """All that decides one token: a row of logits, edits to it, the rules and a number in [0, 1).

    allowed: the ids that the rules choose among, as if all others were at minus infinity; None: all.
    temperature 0 takes the best, the lowest id among equals; top_k 0, top_p 1 and min_p 0 cut nothing.
    """

    row: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float = 0.0
    edits: Edits | None = None
    allowed: Allowed | None = None


class Chosen(NamedTuple):
    """A token for each draw, -1 where its row is bad; `bad`: NaN and infinite logits of the rows with any."""

    tokens: list[int]
    bad: dict[int, int]


def choose(
    logits: Tensor, draws: Sequence[Draw], *, size: int | None = None, holes: Tensor | None = None
) -> Chosen:
    """The token of each draw from logits [b, rows]; several may use one row.

    size: only the first so many columns are tokens. holes: int32 [k], ids below size that are none; without
    it, minus infinity in a row marks them. A row of nothing but holes is bad.
    """
    size = logits.shape[1] if size is None else size
    used = sorted({d.row for d in draws})
    counts = dict(zip(used, count_not_finite(logits[used], size, holes), strict=True))
    chosen = Chosen([], {row: count for row, count in counts.items() if count})
    for d in draws:
        if counts[d.row]:
            chosen.tokens.append(-1)
            continue
        row = candidates(logits[d.row], size, holes)
        if d.edits is not None:
            ids, values = (torch.from_numpy(part).to(row.device) for part in d.edits)
            if wrong := int((~(values < torch.inf)).sum()):  # nothing can be drawn beside them
                chosen.bad[d.row] = wrong
                chosen.tokens.append(-1)
                continue
            row = row.index_copy(0, ids.long(), values)
        if d.allowed is not None:
            row = row.masked_fill(~mask_of(d.allowed, size).to(row.device), -torch.inf)
        if row.amax() == -torch.inf:
            chosen.bad[d.row] = size
            chosen.tokens.append(-1)
        elif d.temperature == 0:
            chosen.tokens.append(greedy(row))
        else:
            scores = apply_temperature(row, d.temperature)
            floor = truncation_floor(scores, d.top_k, d.top_p, d.min_p)
            chosen.tokens.append(draw(scores, floor, d.uniform))
    return chosen


def candidates(row: Tensor, size: int, holes: Tensor | None) -> Tensor:
    """One row [rows] -> float32 [size], minus infinity at holes."""
    row = row[:size].float()
    return row if holes is None else row.index_fill(0, holes.to(row.device).long(), -torch.inf)


def mask_of(allowed: Allowed, size: int) -> Tensor:
    """Bits -> bool [size]."""
    bits = np.unpackbits(allowed.astype("<u4", copy=False).view(np.uint8), count=size, bitorder="little")
    return torch.from_numpy(bits).bool()


def count_not_finite(logits: Tensor, size: int, holes: Tensor | None) -> list[int]:
    """How many tokens' logits are NaN or infinite, for each row: what is drawn from such a row is garbage."""
    logits = logits[:, :size]
    if math.isfinite(float(logits.sum(dtype=torch.float32))):  # one quick pass, exact confirmation below
        return [0] * len(logits)
    wrong = ~logits.isfinite()
    if holes is None:
        wrong &= logits != -torch.inf
    else:
        wrong = wrong.index_fill(1, holes.to(logits.device).long(), False)
    counts: list[int] = wrong.sum(1).tolist()
    return counts


def greedy(logits: Tensor) -> int:
    """The most likely token, the lowest id among equals."""
    return int((logits == logits.amax()).nonzero()[0, 0])  # four times as fast as argmax on a CPU


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """(logits - max) / temperature, temperature > 0. The shift changes no probability and cannot overflow."""
    return (logits - logits.amax()) / max(temperature, COLDEST)


def masses(scores: Tensor) -> Tensor:
    """exp(scores) in units of 2^-40, int64, of float32 scores <= 0.

    Written in operations that round alike everywhere: no fused multiply-add, no exp of a library.
    """
    x = scores.clamp(min=-40)
    n = torch.round(x * 1.4426950216293335)
    r = x - n * 0.693359375  # ten bits: the product is exact
    r = r + n * 0.00021219444170128554  # ln 2 = the one less the other
    p = r * (1 / 5040) + 1 / 720
    for term in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        p = p * r + term
    power = ((n.long() + (1023 + 40)) << 52).view(torch.float64)
    return torch.round(p.double() * power).long()


def truncation_floor(scores: Tensor, top_k: int, top_p: float, min_p: float) -> float:
    """The least score that may still be drawn; -inf when nothing is cut.

    top_k: the k-th best score. top_p: the last score of the smallest set of best tokens whose mass, among
    what top-k left, reaches top_p (Holtzman et al. 2019, arXiv:1904.09751). min_p: the best score plus
    log(min_p) (Nguyen et al. 2024, arXiv:2407.01082). Being a score and not a set, the floor treats equal
    scores equally: every token that ties with the last one kept is kept, whatever its id.
    """
    floor = -math.inf
    top = scores.amax()
    cut_k = 0 < top_k < scores.numel()
    if cut_k:
        best = scores.topk(top_k).values
        floor = float(best[-1])
    if top_p < 1:
        if cut_k:
            total = int(masses(scores[scores >= floor] - top).sum())  # ties with the k-th belong to the mass
            last = _last_of_nucleus(best, top, total, top_p)
        else:
            last = _nucleus_floor(scores, top, top_p)
        floor = floor if last is None else max(floor, last)
    if min_p > 0:
        floor = max(floor, float(top) + math.log(min_p))
    return floor


def _nucleus_floor(scores: Tensor, top: Tensor, top_p: float) -> float | None:
    total = int(masses(scores - top).sum())
    for guess in _NUCLEUS_GUESSES:
        if guess >= scores.numel():
            break
        last = _last_of_nucleus(scores.topk(guess).values, top, total, top_p)
        if last is not None:
            return last
    return _last_of_nucleus(scores.sort(descending=True).values, top, total, top_p)


def _last_of_nucleus(best: Tensor, top: Tensor, total: int, top_p: float) -> float | None:
    """The score at which the mass of `best` (descending) reaches top_p; None if it does not."""
    needed = max(1, -(-in_units(top_p) * total // UNIT))
    reached = int(torch.searchsorted(masses(best - top).cumsum(0), needed))
    return float(best[reached]) if reached < best.numel() else None


def draw(scores: Tensor, floor: float, uniform: float) -> int:
    """The token at which the cumulated mass of all scores >= floor, in id order, passes uniform in [0, 1).

    One number a token is all the randomness there is.
    """
    if floor == -math.inf:
        ids, kept = None, scores
    else:
        ids = (scores >= floor).nonzero().squeeze(1)
        kept = scores[ids]
    mass = masses(kept - kept.amax()).cumsum(0)
    target = min(in_units(uniform), UNIT - 1) * int(mass[-1]) // UNIT
    at = int(torch.searchsorted(mass, target, right=True))
    return at if ids is None else int(ids[at])


def in_units(fraction: float) -> int:
    """A fraction of 1 in 2^-53, to the nearest: exact for random numbers and for all from a half on."""
    return round(fraction * UNIT)


def log_probabilities(
    logits: Tensor,
    wanted: Sequence[tuple[int, int, int]],
    *,
    size: int | None = None,
    holes: Tensor | None = None,
) -> list[Likely]:
    """Natural-log probability of a token and the likeliest ones, for each (row, token, how many) wanted.

    Of the logits as they are, holes apart (see `choose`), which are not listed; float32, lowest id first
    among equals.
    """
    size = logits.shape[1] if size is None else size
    results: list[Likely] = []
    for row, token, top in wanted:
        scores = apply_temperature(candidates(logits[row], size, holes), 1.0)
        normal = scores.log_softmax(0)
        best: list[tuple[int, float]] = []
        if top:
            floor = scores.topk(min(top, scores.numel())).values[-1]
            ids = ((scores >= floor) & (scores > -math.inf)).nonzero().squeeze(1)
            ids = ids[scores[ids].sort(descending=True, stable=True).indices][:top]
            best = list(zip(ids.tolist(), normal[ids].tolist(), strict=True))
        results.append((float(normal[token]), best))
    return results
