"""Vectors for texts: a model's last hidden states, pooled. Nothing is generated.

Runs through the same model, kernels and kind of cache as requests do, with a cache of its own: as many tokens
as the longest input has, or one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenkit.core.errors import ContextLengthError, RequestError
from qwenkit.engine.options import EngineOptions, make_cache
from qwenkit.engine.runner import Runner
from qwenkit.engine.scheduler import Row, Step
from qwenkit.engine.vocabulary import Vocabulary
from qwenkit.model import CausalLM, ntk_alpha

Pooling: TypeAlias = Literal["mean", "last"]


class Piece(NamedTuple):
    """Tokens `start` to `end` of an input, computed in one pass."""

    input: int
    start: int
    end: int


def read_inputs(
    texts: Sequence[str | Sequence[int]], vocabulary: Vocabulary, limit: int
) -> list[Sequence[int]]:
    """The tokens of each, as it stands. Raises RequestError for one without any, or with ids that have no
    text, ContextLengthError for more than `limit`."""
    inputs: list[Sequence[int]] = []
    tokenizer = vocabulary.tokenizer
    for number, text in enumerate(texts, 1):
        which = f"Input {number} of {len(texts)}"
        fewest = tokenizer.fewest_tokens(text) if isinstance(text, str) else len(text)
        if fewest > limit:  # do not spend seconds on finding out how many exactly
            raise _too_long(f"{which} has at least {fewest} tokens", limit)
        ids = tokenizer.encode(text) if isinstance(text, str) else list(text)
        if not ids:
            raise RequestError(f"{which} is empty.", "Give at least one token.")
        if len(ids) > limit:
            raise _too_long(f"{which} has {len(ids)} tokens", limit)
        vocabulary.check(ids, which)
        inputs.append(ids)
    return inputs


def _too_long(problem: str, limit: int) -> ContextLengthError:
    return ContextLengthError(f"{problem}; the limit is {limit}.", "Cut it into several inputs.")


def passes(lengths: Sequence[int], chunk: int) -> list[list[Piece]]:
    """Inputs in order, in passes of at most `chunk` tokens. Only one that no pass holds is cut, and it begins
    a pass, so that no two are half done at a time."""
    plan: list[list[Piece]] = []
    left = 0
    for number, length in enumerate(lengths):
        start = 0
        while start < length:
            if not left or (start == 0 and length > left):
                plan.append([])
                left = chunk
            count = min(left, length - start)
            plan[-1].append(Piece(number, start, start + count))
            left -= count
            start += count
    return plan


def embed(
    model: CausalLM,
    inputs: Sequence[Sequence[int]],
    options: EngineOptions,
    *,
    pooling: Pooling,
    exclusively: Callable[[Callable[[], Tensor]], Tensor],
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """One vector of length 1 for each input, float32 [n, hidden size] on the CPU.

    pooling: the mean of the states of all tokens, or that of the last. exclusively: runs a pass so that it
    does not meet another's. progress: told how many tokens each pass read; what it raises ends the work.
    Raises RequestError for another pooling.
    """
    if pooling not in ("mean", "last"):
        raise RequestError(f"Unknown pooling {pooling!r}.", "Choose mean or last.")
    config = model.shape
    plan = passes([len(ids) for ids in inputs], options.step_tokens)
    tables, blocks = _tables(plan, [len(ids) for ids in inputs], options.block_tokens)
    cache = make_cache(model, replace(options, cache_tokens=max(1, blocks) * options.block_tokens))
    runner = Runner(model, cache)
    alphas = [ntk_alpha(len(ids), config.seq_length) if config.dynamic_ntk else 1.0 for ids in inputs]
    sums = torch.zeros(len(inputs), config.hidden_size)

    def compute(pieces: list[Piece]) -> Tensor:
        rows = [
            Row(i, start, tuple(inputs[i][start:end]), tables[i], (i,), end - start - 1, alphas[i], None)
            for i, start, end in pieces
        ]
        hidden = runner.hidden(Step(tuple(rows)))[0]
        parts = torch.split(hidden, [row.count for row in rows])
        states = [part.float().sum(0) if pooling == "mean" else part[-1].float() for part in parts]
        return torch.stack(states).cpu()

    for pieces in plan:
        for piece, state in zip(pieces, exclusively(lambda pieces=pieces: compute(pieces)), strict=True):  # type: ignore[misc]
            if pooling == "mean" or piece.end == len(inputs[piece.input]):
                sums[piece.input] += state
        if progress is not None:
            progress(sum(piece.end - piece.start for piece in pieces))
    return F.normalize(sums, dim=-1)  # a mean has the direction of its sum


def _tables(
    plan: Sequence[Sequence[Piece]], lengths: Sequence[int], block_tokens: int
) -> tuple[list[tuple[int, ...]], int]:
    """The blocks of each input, given out when it begins and taken back when it has ended; how many are
    needed at most."""
    tables: list[tuple[int, ...]] = [()] * len(lengths)
    free: list[int] = []
    total = 0
    for pieces in plan:
        for i, start, _ in pieces:
            if start == 0:
                count = -(-lengths[i] // block_tokens)
                total += (fresh := max(0, count - len(free)))
                free += range(total - fresh, total)
                tables[i] = tuple(free[-count:])
                del free[-count:]
        for i, _, end in pieces:
            if end == lengths[i]:
                free += tables[i]
    return tables, total
