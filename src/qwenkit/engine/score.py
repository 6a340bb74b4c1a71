"""How likely a model finds a text, token by token: the measure behind perplexity.

Runs through the same model, kernels and kind of cache as requests do, with a cache of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from qwenkit.engine.runner import Runner
from qwenkit.engine.scheduler import Row, Step
from qwenkit.engine.vocabulary import Vocabulary

_LOGIT_ROWS = 64
"""Positions whose logits are held at once: 152k float32 numbers each."""


def log_likelihoods(
    runner: Runner,
    vocabulary: Vocabulary,
    token_ids: Sequence[int],
    *,
    ntk_alpha: float,
    chunk: int,
    exclusively: Callable[[Callable[[], Tensor]], Tensor],
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Natural-log probability of each token after the first, given those before it: float32 [n - 1].

    runner: has a cache with room for all tokens, which nobody else uses. chunk: tokens of one pass.
    exclusively: runs a pass so that it does not meet another. progress: told how many tokens each pass read.
    """
    table = tuple(range(-(-len(token_ids) // runner.cache.shape.block_size)))
    wanted = torch.tensor(token_ids, device=runner.device)
    parts = []
    for start in range(0, len(token_ids), chunk):
        ids = tuple(token_ids[start : start + chunk])
        # Every token is asked about: as if all of them were drafts but one.
        row = Row(0, start, ids, table, (0,), len(ids) - 1, ntk_alpha, None)
        targets = wanted[start + 1 : start + 1 + len(ids)]
        parts.append(exclusively(partial(_chunk, runner, vocabulary, row, targets)))
        if progress is not None:
            progress(len(ids))
    return torch.cat(parts)


def _chunk(runner: Runner, vocabulary: Vocabulary, row: Row, targets: Tensor) -> Tensor:
    hidden = runner.hidden(Step((row,)))[0]
    found = []
    for at in range(0, targets.numel(), _LOGIT_ROWS):
        target = targets[at : at + _LOGIT_ROWS]
        logits = vocabulary.candidates(runner.model.lm_head(hidden[at : at + target.numel()]))
        found.append(logits.log_softmax(-1).gather(1, target[:, None])[:, 0])
    return torch.cat(found) if found else hidden.new_empty(0, dtype=torch.float32)
