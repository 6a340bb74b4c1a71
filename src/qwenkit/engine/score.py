"""How likely a model finds a text, token by token: the measure behind perplexity and comparisons.

Runs through the same model, kernels and kind of cache as requests do, with a cache of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from qwenkit.engine.runner import Runner
from qwenkit.engine.scheduler import Row, Step
from qwenkit.engine.vocabulary import Vocabulary

_LOGIT_ROWS = 64
"""Positions whose logits are held at once: 152k float32 numbers each."""


def distributions(
    runner: Runner,
    vocabulary: Vocabulary,
    token_ids: Sequence[int],
    *,
    ntk_alpha: float,
    chunk: int,
    exclusively: Callable[[Callable[[], Tensor]], Tensor],
    progress: Callable[[int], object] | None = None,
) -> Iterator[Tensor]:
    """Natural-log probabilities of all tokens after each of `token_ids` but the last.

    Yields float32 [up to 64 positions, rows of the vocabulary], in order; rows without a token are -inf.
    runner: has a cache with room for all tokens, which nobody else uses. chunk: tokens of one pass.
    exclusively: runs a part of it so that it does not meet another. progress: told how many tokens each
    pass read.
    """
    table = tuple(range(-(-len(token_ids) // runner.cache.shape.block_size)))
    for start in range(0, len(token_ids), chunk):
        ids = tuple(token_ids[start : start + chunk])
        # Every token is asked about: as if all of them were drafts but one.
        row = Row(0, start, ids, table, (0,), len(ids) - 1, ntk_alpha, None)
        hidden = exclusively(partial(_hidden, runner, row))
        wanted = min(len(ids), len(token_ids) - 1 - start)
        for at in range(0, wanted, _LOGIT_ROWS):
            part = hidden[at : min(at + _LOGIT_ROWS, wanted)]
            yield exclusively(partial(_log_probabilities, runner, vocabulary, part))
        if progress is not None:
            progress(len(ids))


def log_likelihoods(token_ids: Sequence[int], rows: Iterable[Tensor]) -> Tensor:
    """Natural-log probability of each token after the first, float32 [n - 1]; rows: their `distributions`."""
    parts, at = [], 1
    for logs in rows:
        targets = torch.tensor(token_ids[at : at + len(logs)], device=logs.device)
        parts.append(logs.gather(1, targets[:, None])[:, 0])
        at += len(logs)
    return torch.cat(parts)


@torch.inference_mode()
def _hidden(runner: Runner, row: Row) -> Tensor:
    return runner.hidden(Step((row,)))[0]


@torch.inference_mode()
def _log_probabilities(runner: Runner, vocabulary: Vocabulary, hidden: Tensor) -> Tensor:
    return vocabulary.candidates(runner.model.lm_head(hidden)).log_softmax(-1)
