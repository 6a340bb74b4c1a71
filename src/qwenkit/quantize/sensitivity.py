"""What each part of a model is worth in bits: measured by rounding it alone.

A few texts go through the model once as it is, and once for each unit of each block with that unit rounded
to nearest and nothing else. All copies move side by side, so each block is read once. The unit's worth is
the Kullback-Leibler divergence of the predictions from those of the model as it is.

How far another rounding of the same unit would go is scaled, not measured: for small errors the loss grows
linearly in the squared error of the weights (Malinovskii et al., "Pushing the Limits of Large Language Model
Quantization via the Linearity Theorem", 2024, arXiv 2411.17525), and the losses of several units add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qwenkit.kernels import rms_norm
from qwenkit.quant.gptq_rounding import Rounding, round_to_grid
from qwenkit.quantize.block_pass import BlockPass, linear
from qwenkit.quantize.hidden import HiddenStates, chunked
from qwenkit.quantize.layers import check_finite, linear_of, put
from qwenkit.quantize.source import Source

UNITS = (("attn.c_attn",), ("attn.c_proj",), ("mlp.w1", "mlp.w2"), ("mlp.c_proj",))
"""Layers that other engines run as one, and that therefore get the same bits."""

_TEXTS, _LENGTH = 4, 128
_ROWS = 128  # of logits at once


@dataclass(frozen=True)
class Worth:
    """A unit of a block. divergence: nats a token, of the first rounding; errors: squared, of the weights,
    for each rounding.
    """

    block: int
    layers: tuple[str, ...]
    divergence: float
    errors: tuple[float, ...]

    def cost(self, at: int) -> float:
        """What the rounding number `at` is expected to cost, nats a token."""
        return self.divergence * self.errors[at] / self.errors[0] if self.errors[0] else 0.0

    def described(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Worth:
        """From what `described` gave."""
        return cls(value["block"], tuple(value["layers"]), value["divergence"], tuple(value["errors"]))


def excerpt(texts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The beginnings of a few of the texts, evenly spread."""
    count = min(_TEXTS, len(texts))
    return [tuple(texts[at * len(texts) // count][:_LENGTH]) for at in range(count)]


def steps(source: Source, texts: Sequence[Sequence[int]]) -> int:
    """Tokens that `measure` reports in all."""
    tokens, layers = sum(map(len, texts)), source.config.num_layers
    copies = sum(len(UNITS) * (number + 1) + 1 for number in range(layers))
    return tokens * (3 * copies + len(UNITS) * layers + 1)


def measure(
    source: Source,
    texts: Sequence[Sequence[int]],
    roundings: Sequence[Rounding],
    progress: Callable[[int], object] = lambda tokens: None,
) -> list[Worth]:
    """Every unit of every block, in order; the first rounding is the one that is measured.

    Memory: the texts' hidden states once for each unit. Raises UnsupportedError for outputs that are not
    finite numbers.
    """
    base = HiddenStates.embed(texts, source.tensor("transformer.wte.weight"), source.config)
    copies = _Copies(base, 1 + len(UNITS) * source.config.num_layers)
    found: list[Worth] = []
    for number in range(source.config.num_layers):
        block = source.block(number)
        before = len(found)
        for layers in UNITS:
            copies.values(len(found) + 1).copy_(copies.values(0))
            held = {name: linear_of(block, name).weight for name in layers}
            errors = [0.0] * len(roundings)
            for name, weight in held.items():
                for at, rounding in reversed(list(enumerate(roundings))):
                    rounded = round_to_grid(weight, replace(rounding, clip=False)).dequantize()
                    errors[at] += float((rounded - weight.float()).square().sum(dtype=torch.float64))
                put(linear_of(block, name), rounded)
            BlockPass(block, copies.part(len(found) + 1, 1), progress).run()
            for name, weight in held.items():
                linear_of(block, name).weight = nn.Parameter(weight, requires_grad=False)
            found.append(Worth(number, layers, 0.0, tuple(errors)))
        BlockPass(block, copies.part(0, before + 1), progress).run()
        check_finite(copies.values(0), f"transformer.h.{number}", "outputs")
    source.forget()
    divergences = _divergences(source, copies, progress)
    return [replace(unit, divergence=value) for unit, value in zip(found, divergences, strict=True)]


class _Copies:
    """The same texts several times, as hidden states side by side."""

    def __init__(self, base: HiddenStates, count: int) -> None:
        self.tokens, self.count = len(base), count
        self._spans = [span for chunk in base.chunks for span in chunk.spans]
        self._values = torch.empty(count * self.tokens, base.values.shape[1], dtype=base.values.dtype)
        self.values(0).copy_(base.values)

    def values(self, number: int) -> Tensor:
        """[tokens, hidden] of one copy."""
        return self._values[number * self.tokens : (number + 1) * self.tokens]

    def part(self, first: int, count: int) -> HiddenStates:
        """Some copies that lie side by side, sharing their memory."""
        spans = [
            replace(span, start=span.start + at * self.tokens, end=span.end + at * self.tokens)
            for at in range(count)
            for span in self._spans
        ]
        values = self._values[first * self.tokens : (first + count) * self.tokens]
        return HiddenStates(values, list(chunked(spans)))


def _divergences(source: Source, copies: _Copies, progress: Callable[[int], object]) -> list[float]:
    """Of each copy's predictions from those of the first, nats a token."""
    norm = source.tensor("transformer.ln_f.weight")
    head = linear(source.tensor("lm_head.weight"), None, source.dtype)

    def predicted(number: int, rows: slice) -> Tensor:
        x = rms_norm(copies.values(number)[rows], norm, source.config.norm_eps)
        return torch.log_softmax(head(x).float(), dim=-1)

    sums = [0.0] * (copies.count - 1)
    for start in range(0, copies.tokens, _ROWS):
        rows = slice(start, start + _ROWS)
        original = predicted(0, rows)
        share = original.exp()
        progress(len(original))
        for at in range(len(sums)):
            sums[at] += float((share * (original - predicted(at + 1, rows))).sum(dtype=torch.float64))
            progress(len(original))
    return [max(total / copies.tokens, 0.0) for total in sums]
