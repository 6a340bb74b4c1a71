"""How well the unrounded model predicts texts, computed block by block in the memory of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from qwenkit.engine.vocabulary import Vocabulary
from qwenkit.kernels import rms_norm
from qwenkit.quantize.block_pass import BlockPass, linear
from qwenkit.quantize.hidden import HiddenStates
from qwenkit.quantize.layers import check_finite
from qwenkit.quantize.source import Source

_ROWS = 256  # of logits at once


def streamed_losses(
    source: Source, texts: Sequence[Sequence[int]], progress: Callable[[int], object] = lambda tokens: None
) -> list[float]:
    """For each text the sum of -log p of its tokens but the first, each given those before it.

    Raises UnsupportedError naming the block that overflows.
    """
    hidden = HiddenStates.embed(texts, source.tensor("transformer.wte.weight"), source.config)
    for number in range(source.config.num_layers):
        BlockPass(source.block(number), hidden, progress).run()
        check_finite(hidden.values, f"transformer.h.{number}", "outputs")
    source.forget()
    norm, head = (
        source.tensor("transformer.ln_f.weight"),
        linear(source.tensor("lm_head.weight"), None, source.dtype),
    )
    vocabulary = Vocabulary(
        source.tokenizer, source.config.vocab_size
    )  # as the engine: ids without text are none
    spans = [span for chunk in hidden.chunks for span in chunk.spans]
    losses = []
    for ids, span in zip(texts, spans, strict=True):
        targets = torch.tensor(ids)
        x = rms_norm(hidden.values[span.start : span.end - 1], norm, source.config.norm_eps)
        losses.append(
            sum(
                _loss(vocabulary.candidates(head(x[at : at + _ROWS])), targets[at + 1 :])
                for at in range(0, len(x), _ROWS)
            )
        )
    return losses


def _loss(logits: Tensor, targets: Tensor) -> float:
    return float(nn.functional.cross_entropy(logits, targets[: len(logits)], reduction="sum"))
