"""Linear layers over the native kernels' packed weights: what a quantized or bf16 model runs on a CPU.

Knows: buffers, their shapes, and which path a call takes. Does not know files, checkpoint formats or how
weights were quantized. Inference only: a call that would need a gradient is an error.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native
from qwenkit.kernels.native import Activations, AffineShape, AffineWeight, Bf16Weight
from qwenkit.quant.nested import Codes, NestedCodes, unpack_nested


def _refuse_gradient(x: Tensor, layer: nn.Module) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise UnsupportedError(
            f"{type(layer).__name__} has no backward pass.",
            "Train on unpacked weights, or use torch.no_grad().",
        )


class _Packed(nn.Module):
    """A layer whose kernel object is made from its buffers on demand: copies and loads need no care."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self._weight: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weight": None}  # addresses do not survive a copy or a pickle

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._weight = None
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # to(), half(), share_memory() ...
        self._weight = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]


class PackedLinear(_Packed):
    """y = x w^T + bias with w = scale * (code - zero) or scale * code + minimum, packed for the kernels.

    Buffers: packed uint8 [bytes], gather int32 [packed columns] or None (act-order), bias [out] or None.
    activations: "int8" quantizes x for the product, "16bit" keeps it (see AffineWeight.multiply).
    x: [..., in] float32, bfloat16 or float16 on the CPU -> [..., out] in x's dtype. A row's result does not
    depend on the other rows. Under QWENKIT_ISA=reference the weight is unpacked and multiplied by torch.
    """

    gather: Tensor | None

    def __init__(
        self,
        shape: AffineShape,
        packed: Tensor,
        gather: Tensor | None = None,
        bias: Tensor | None = None,
        activations: Activations = "int8",
    ) -> None:
        super().__init__()
        self.shape, self.activations = shape, activations
        self.register_buffer("packed", packed)
        self.register_buffer("gather", gather)
        self.register_buffer("bias", bias)

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scales: Tensor,
        *,
        bits: int,
        group_of_column: Tensor,
        zeros: Tensor | None = None,
        minima: Tensor | None = None,
        eighths: Tensor | None = None,
        bias: Tensor | None = None,
        activations: Activations = "int8",
    ) -> PackedLinear:
        """Pack codes uint8 [out, in] (one a byte), scales and zeros [groups, out]; no value changes.

        Arguments as in AffineWeight.pack; raises UnsupportedError where float16 cannot hold a scale.
        """
        weight = AffineWeight.pack(
            codes,
            scales,
            bits=bits,
            group_of_column=group_of_column,
            zeros=zeros,
            minima=minima,
            eighths=eighths,
        )
        layer = cls(weight.shape, weight.packed, weight.gather, bias, activations)
        layer._weight = weight if bias is None else None
        return layer

    @classmethod
    def from_affine(
        cls, weight: Codes, bias: Tensor | None = None, activations: Activations = "int8"
    ) -> PackedLinear:
        """Pack a weight that was rounded here or read from a file's own codes; no value changes."""
        if isinstance(weight, NestedCodes):
            packed = AffineWeight.pack_nested(
                weight.codes,
                weight.scales,
                weight.inner_scales,
                bits=weight.bits,
                minima=weight.minima,
                inner_minima=weight.inner_minima,
            )
            return cls(packed.shape, packed.packed, None, bias, activations)
        return cls.from_codes(
            weight.codes,
            weight.scales,
            bits=weight.bits,
            group_of_column=weight.group_of_column,
            minima=weight.minima,
            eighths=weight.eighths,
            bias=bias,
            activations=activations,
        )

    @property
    def form(self) -> str:
        """The number format in words."""
        rounded = "" if self.activations == "int8" else ", inputs not rounded"
        if self.shape.inner:
            return f"int{self.shape.bits} with nested scales in groups of {self.shape.inner}"
        return f"int{self.shape.bits} in groups of {self.shape.group}{rounded}"

    @property
    def in_features(self) -> int:
        return self.shape.columns

    @property
    def out_features(self) -> int:
        return self.shape.rows

    def forward(self, x: Tensor) -> Tensor:
        _refuse_gradient(x, self)
        if native.isa() == "reference":
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, self.dequantize(x.dtype), bias)
        return self.weight().multiply(x, self.activations)

    def weight(self) -> AffineWeight:
        """The kernel's view of the buffers; holds them, so it stays valid when they are replaced here."""
        weight: AffineWeight | None = self._weight
        if weight is None or weight.packed.data_ptr() != self.packed.data_ptr():
            weight = self._weight = AffineWeight(self.shape, self.packed, self.gather, self.bias)
        return weight

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in], read back from the packed bytes by torch alone (computed in float32)."""
        s = self.shape
        if s.inner:
            return unpack_nested(self.packed, s).dequantize(dtype)
        blocks = (s.rows + 15) // 16
        groups = self.packed.view(blocks, s.groups, -1)
        lines = groups[..., : s.group * s.bits * 2].reshape(blocks, s.groups, -1, 64)
        if s.bits == 4:
            lines = torch.stack((lines & 15, lines >> 4), dim=-2).flatten(2, 3)
        # [block, group, line, row, 4 columns] -> [row, packed column]
        codes = (
            lines.view(*lines.shape[:-1], 16, 4)
            .permute(0, 3, 1, 2, 4)
            .reshape(blocks * 16, s.groups, s.group)
        )
        tail = groups[..., s.group * s.bits * 2 :]

        def plane(data: Tensor) -> Tensor:  # [block, group, 16] -> [row, group, 1]
            return data.float().transpose(1, 2).reshape(blocks * 16, s.groups, 1)

        scale = plane(tail[..., :32].contiguous().view(torch.float16))
        if s.zeros == "minima":
            w = scale * codes.float() + plane(tail[..., 32:].contiguous().view(torch.float16))
        elif s.zeros == "points":
            w = scale * (codes.float() - plane(tail[..., 32:]) / (8 if s.bits == 4 else 1))
        else:
            w = scale * (codes.float() - (1 << (s.bits - 1)))
        w = w.flatten(1)[: s.rows]
        if self.gather is None:
            return w[:, : s.columns].to(dtype)
        out = torch.empty(s.rows, s.columns)
        real = self.gather >= 0
        out[:, self.gather[real].long()] = w[:, real]
        return out.to(dtype)

    def extra_repr(self) -> str:
        s = self.shape
        order = ", act-order" if self.gather is not None else ""
        inner = f", integer scales of {s.inner}" if s.inner else ""
        form = f"int{s.bits}, groups of {s.group}{inner}, zeros={s.zeros}{order}"
        return f"{s.columns}, {s.rows}, {form}, x as {self.activations}"


class PackedBf16Linear(_Packed):
    """y = x w^T + bias, bfloat16 weights packed for the kernels; x rounded to bfloat16, sums in float32."""

    form = "bfloat16"

    def __init__(self, rows: int, columns: int, packed: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = rows, columns
        self.register_buffer("packed", packed)
        self.register_buffer("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> PackedBf16Linear:
        """Pack a bfloat16 nn.Linear."""
        weight = Bf16Weight.pack(linear.weight.detach())
        return cls(weight.rows, weight.columns, weight.packed, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        _refuse_gradient(x, self)
        if native.isa() == "reference":
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(x, self.dequantize(x.dtype), bias)
        return self.weight().multiply(x)

    def weight(self) -> Bf16Weight:
        """The kernel's view of the buffers; holds them, so it stays valid when they are replaced here."""
        weight: Bf16Weight | None = self._weight
        if weight is None or weight.packed.data_ptr() != self.packed.data_ptr():
            weight = self._weight = Bf16Weight(self.out_features, self.in_features, self.packed, self.bias)
        return weight

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The weight [out, in], read back from the packed bytes by torch alone."""
        blocks = (self.out_features + 15) // 16
        lines = self.packed.view(torch.bfloat16).view(blocks, -1, 16, 2)
        w = lines.permute(0, 2, 1, 3).reshape(blocks * 16, -1)
        return w[: self.out_features, : self.in_features].to(dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bfloat16"
