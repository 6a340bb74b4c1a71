"""Choosing a token: pure functions on the logits of one row, and the sampler that composes them.

Order, that of the original and of transformers: logit bias, repetition penalty, presence and frequency
penalties, temperature, top-k, top-p, min-p, draw. (vLLM differs in one place: it applies min-p before
top-k and top-p.) Log probabilities are those of the untouched logits.

Knows one row and what it has emitted; knows nothing of batches, text or stopping. Rows are float32
[vocab] over exactly the ids that may be chosen, on any device. No function changes its input.
"""

from __future__ import annotations

import math
import secrets

import numpy as np
import torch
from torch import Tensor

from qwenkit.core.errors import QwenkitError
from qwenkit.core.sampling import SamplingParams

_NUCLEUS_GUESSES = (256, 4096)
"""Tokens taken for a nucleus before a whole vocabulary is sorted; 256 suffice for all but flat rows."""

_COLDEST = 1e-30
"""Below this a temperature vanishes in float32; at it every lesser logit is already at minus infinity."""


def apply_logit_bias(logits: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """logits[ids] + values; ids int64 [k] without repeats, values float32 [k]."""
    return logits.index_add(0, ids, values)


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits of `seen` (int64 [k], no repeats) by `penalty`.

    Keskar et al. 2019, arXiv:1909.05858, in the sign-aware form of transformers; once however often seen.
    """
    held = logits[seen]
    return logits.index_copy(0, seen, torch.where(held > 0, held / penalty, held * penalty))


def apply_count_penalties(
    logits: Tensor, ids: Tensor, counts: Tensor, presence: float, frequency: float
) -> Tensor:
    """logits[ids] - presence - frequency * counts, for ids that occurred counts >= 1 times (OpenAI API)."""
    return logits.index_add(0, ids, -(presence + frequency * counts))


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """(logits - max) / temperature, temperature > 0. The shift changes no probability and cannot overflow."""
    return (logits - logits.amax()) / max(temperature, _COLDEST)


def truncation_floor(scores: Tensor, top_k: int, top_p: float, min_p: float) -> float:
    """The least score that may still be drawn; -inf when nothing is cut.

    top_k: the k-th best score. top_p: the last score of the smallest set of best tokens whose mass, among
    what top-k left, reaches top_p (Holtzman et al. 2019, arXiv:1904.09751). min_p: the best score plus
    log(min_p) (Nguyen et al. 2024, arXiv:2407.01082). Being a score and not a set, the floor treats equal
    scores equally: every token that ties with the last one kept is kept, whatever its id.
    """
    floor = -math.inf
    cut_k = 0 < top_k < scores.numel()
    if cut_k:
        best = scores.topk(top_k).values
        floor = float(best[-1])
    if top_p < 1:
        if cut_k:
            total = scores[scores >= floor].logsumexp(0)  # ties with the k-th belong to the mass
            last = _last_of_nucleus(best, total, top_p)
        else:
            last = _nucleus_floor(scores, top_p)
        floor = floor if last is None else max(floor, last)
    if min_p > 0:
        floor = max(floor, float(scores.amax()) + math.log(min_p))
    return floor


def _nucleus_floor(scores: Tensor, top_p: float) -> float | None:
    total = scores.logsumexp(0)
    for guess in _NUCLEUS_GUESSES:
        if guess >= scores.numel():
            break
        last = _last_of_nucleus(scores.topk(guess).values, total, top_p)
        if last is not None:
            return last
    return _last_of_nucleus(scores.sort(descending=True).values, total, top_p)


def _last_of_nucleus(best: Tensor, total: Tensor, top_p: float) -> float | None:
    """The score at which the mass of `best` (descending) reaches top_p; None if it does not."""
    mass = (best - total).exp().cpu().double().cumsum(0)
    reached = int(torch.searchsorted(mass, top_p))
    return float(best[reached]) if reached < best.numel() else None


def draw(scores: Tensor, floor: float, uniform: float) -> int:
    """The token at which the cumulated probability of all scores >= floor passes uniform in [0, 1).

    Accumulated in id order and float64: neighbours in the cumulation do not depend on how ties were
    sorted, and one number a token is all the randomness there is, so a seed means the same everywhere.
    """
    if floor == -math.inf:
        ids, kept = None, scores
    else:
        ids = (scores >= floor).nonzero().squeeze(1)
        kept = scores[ids]
    mass = (kept - kept.amax()).exp().cpu().double().cumsum(0)
    total = mass[-1:]
    at = torch.searchsorted(mass, uniform * total, right=True)
    if int(at) == mass.numel():  # uniform * total rounded up to total: the last token with any mass
        at = torch.searchsorted(mass, total)
    return int(at) if ids is None else int(ids[int(at)])


def greedy(logits: Tensor) -> int:
    """The most likely token, the lowest id among equals."""
    return int((logits == logits.amax()).nonzero()[0, 0])  # four times as fast as argmax on a CPU


def bad_rows(logits: Tensor) -> dict[int, QwenkitError]:
    """The rows of logits [n, vocab] that hold a NaN or infinity, each with the error its reader gets."""
    if math.isfinite(float(logits.sum(dtype=torch.float32))):  # one quick pass, exact confirmation below
        return {}
    counts = (~logits.isfinite()).sum(-1).tolist()
    return {
        i: QwenkitError(
            f"The model produced {count} NaN or infinite logits of {logits.shape[-1]}.",
            "Try dtype='bfloat16' or 'float32' (float16 overflows on some models); "
            "if it persists the checkpoint is damaged.",
        )
        for i, count in enumerate(counts)
        if count
    }


def log_probabilities(logits: Tensor, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural-log probability of `token` and the `top` likeliest (id, log probability), best first.

    Ids at minus infinity, which have no text, are not listed.
    """
    normal = logits.float().log_softmax(0)
    if not top:
        return float(normal[token]), []
    values, ids = normal.topk(min(top, normal.numel()))
    best = zip(ids.tolist(), values.tolist(), strict=True)
    return float(normal[token]), [(i, value) for i, value in best if value > -math.inf]


class _Tally:
    """Distinct ids and how often each came; tensors that grow by doubling, so a step stays O(1)."""

    def __init__(self, ids: tuple[int, ...], device: torch.device) -> None:
        self._slot: dict[int, int] = {}
        self._ids = torch.empty(max(16, 2 * len(ids)), dtype=torch.int64)
        self._counts = torch.zeros_like(self._ids, dtype=torch.float32)
        for token in ids:
            self.add(token)
        self._ids, self._counts = self._ids.to(device), self._counts.to(device)

    def add(self, token: int) -> None:
        slot = self._slot.setdefault(token, len(self._slot))
        if slot == self._ids.numel():
            self._ids = torch.cat((self._ids, torch.empty_like(self._ids)))
            self._counts = torch.cat((self._counts, torch.zeros_like(self._counts)))
        self._ids[slot] = token
        self._counts[slot] += 1

    @property
    def ids(self) -> Tensor:
        return self._ids[: len(self._slot)]

    @property
    def counts(self) -> Tensor:
        return self._counts[: len(self._slot)]


class Sampler:
    """The state of choosing for one text: its random stream and the tokens that penalties count.

    params must have no None left among the fields used here (see SamplingParams.with_defaults). The
    random numbers are Philox4x64 keyed by (seed, choice): they depend on nothing but the request. A seed
    of None draws one from the operating system.
    """

    def __init__(self, params: SamplingParams, prompt_ids: tuple[int, ...], choice: int = 0) -> None:
        self.params = params
        self.temperature = _resolved("temperature", params.temperature)
        self.top_p = _resolved("top_p", params.top_p)
        self.top_k = int(_resolved("top_k", params.top_k))
        self.min_p = _resolved("min_p", params.min_p)
        self.repetition = _resolved("repetition_penalty", params.repetition_penalty)
        seed = secrets.randbits(64) if params.seed is None else params.seed % 2**64
        key = np.array([seed, choice], dtype=np.uint64)
        self._random = np.random.Generator(np.random.Philox(key=key))
        self._prompt_ids = prompt_ids
        self._bias: tuple[Tensor, Tensor] | None = None
        self._seen: _Tally | None = None
        self._made: _Tally | None = None

    def choose(self, logits: Tensor) -> int:
        """The next token of a finite float32 row [vocab]; it is counted as emitted."""
        scores = self._adjusted(logits)
        if self.params.greedy:
            token = greedy(scores)
        else:
            scores = apply_temperature(scores, self.temperature)
            floor = truncation_floor(scores, self.top_k, self.top_p, self.min_p)
            token = draw(scores, floor, float(self._random.random()))
        for tally in (self._seen, self._made):
            if tally is not None:
                tally.add(token)
        return token

    def _adjusted(self, logits: Tensor) -> Tensor:
        """Logits after bias and penalties."""
        p, device = self.params, logits.device
        if p.logit_bias:
            if self._bias is None:
                self._bias = (
                    torch.tensor(list(p.logit_bias), device=device),
                    torch.tensor([float(v) for v in p.logit_bias.values()], device=device),
                )
            logits = apply_logit_bias(logits, *self._bias)
        if self.repetition != 1:
            self._seen = self._seen or _Tally(self._prompt_ids, device)
            logits = apply_repetition_penalty(logits, self._seen.ids, self.repetition)
        if p.presence_penalty or p.frequency_penalty:
            self._made = self._made or _Tally((), device)
            made = self._made
            logits = apply_count_penalties(
                logits, made.ids, made.counts, p.presence_penalty, p.frequency_penalty
            )
        return logits


def _resolved(name: str, value: float | None) -> float:
    if value is None:
        raise TypeError(f"Sampler needs resolved parameters: {name} is None; apply with_defaults first.")
    return value
