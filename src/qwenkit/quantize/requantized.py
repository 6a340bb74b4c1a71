"""A GPTQ base with an adapter merged, to be rounded again: what the adapter does not touch keeps its words.

A weight of the base lies on its grid; merged, it lies a little beside it. On the same grid the adapter alone
is rounded, on a new one everything once more: each row takes what changes its output least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwenkit.checkpoint import Checkpoint, MergedCheckpoint, PlannedTensor
from qwenkit.checkpoint.loading import PACKED
from qwenkit.core import RequestError, UnsupportedError
from qwenkit.quant import AffineLinear
from qwenkit.quant.gptq import unpack_nibbles
from qwenkit.quant.gptq_rounding import RoundedWeight, Rounding
from qwenkit.quant.rerounding import round_again
from qwenkit.quantize.layers import LAYERS
from qwenkit.quantize.settings import Settings
from qwenkit.quantize.source import Source


@dataclass(frozen=True)
class StoredLayer:
    """A linear layer as the base stores it. changed: bool [out], the rows that the adapter touches."""

    words: RoundedWeight
    changed: Tensor

    @property
    def kept(self) -> bool:
        """Whether nothing of it is rounded again."""
        return not bool(self.changed.any())

    def rounded(self, weight: Tensor, moments: Tensor | None, rounding: Rounding) -> RoundedWeight:
        """The merged weight [out, in]. Raises as `round_again`."""
        return self.words if self.kept else round_again(weight, moments, rounding, self.words, self.changed)


class Requantized(Source):
    """The base and the adapter in floats, and the words of the base beside them.

    Raises UnsupportedError for a base whose q, k and v are grouped differently, whose layers have different
    bits, or whose scales float16 cannot hold; and as Source.
    """

    checkpoint: MergedCheckpoint

    def __init__(self, checkpoint: MergedCheckpoint, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, dtype)
        self._words = {tensor.name: tensor for tensor in checkpoint.base.planned()}

    def _read(self, checkpoint: Checkpoint) -> list[PlannedTensor]:
        return list(checkpoint.planned())  # dequantized weights in float32: on the grid to the last digit

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.checkpoint.base.entries())

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "adapter": str(self.checkpoint.adapter.path.absolute())}

    def stored(self, number: int) -> Mapping[str, StoredLayer]:
        return {name: self._layer(f"transformer.h.{number}.{name}") for name in LAYERS}

    def _layer(self, name: str) -> StoredLayer:
        gptq = self.checkpoint.base.gptq
        if gptq is None or f"{name}.qweight" not in self._words:
            raise UnsupportedError(f"{name} of the base is not quantized.", "Take --requantize none.")
        qweight, qzeros, scales, g_idx = (self._words[f"{name}.{kind}"].read() for kind in PACKED)
        if qweight.shape[0] * 32 != g_idx.shape[0] * gptq.bits:
            raise UnsupportedError(f"{name} of the base has other bits than {gptq.bits}.", _QUANTIZE_ANEW)
        layer = AffineLinear.from_gptq(qweight, qzeros, scales, g_idx, gptq.bits)
        sizes = layer.group_of_column.bincount(minlength=len(scales))
        if bool((sizes != sizes[0]).any()) or not torch.equal(scales.half().to(scales.dtype), scales):
            raise UnsupportedError(f"{name} has groups of several sizes, or wide scales.", _QUANTIZE_ANEW)
        codes = unpack_nibbles(layer.codes) if gptq.bits == 4 else layer.codes
        words = RoundedWeight(codes, scales.half(), layer.zeros, layer.group_of_column, 0.0, math.nan)
        changed = torch.zeros(len(codes), dtype=torch.bool)
        for change in self.checkpoint.changes.get(f"{name}.weight", ()):
            changed[change.first : change.first + change.rows] = True
        return StoredLayer(words, changed)


_QUANTIZE_ANEW = "Take --requantize none, and `qwenkit quantize` for the result."


def source_of(checkpoint: Checkpoint, dtype: torch.dtype) -> Source:
    """What is rounded. Raises as Source and Requantized."""
    if isinstance(checkpoint, MergedCheckpoint) and checkpoint.base.gptq is not None:
        return Requantized(checkpoint, dtype)
    return Source(checkpoint, dtype)


def settings_like(base: Checkpoint, **asked: Any) -> Settings:
    """Bits, groups, symmetry and order as the base was quantized, and no correction, for most weights keep
    their words; asked: the other fields of Settings.

    Raises RequestError for a base that is not quantized.
    """
    gptq = base.gptq
    if gptq is None:
        raise RequestError(
            f"{base.path} is not quantized by GPTQ, so there is nothing to quantize again.",
            "Leave --requantize out; `qwenkit quantize` is for the merged folder.",
        )
    orders = (tensor.read() for tensor in base.planned() if tensor.name.endswith("c_attn.g_idx"))
    ordered = gptq.fields.get("desc_act") or any(bool((order.diff() < 0).any()) for order in orders)
    damping = gptq.fields.get("damp_percent")
    rounding = Rounding(
        gptq.bits,
        gptq.group_size,
        symmetric=bool(gptq.fields.get("sym", True)),
        act_order=bool(ordered),
        damping=damping if isinstance(damping, float) and damping > 0 else 0.01,
    )
    return Settings(rounding=rounding, correction=0.0, **asked)
