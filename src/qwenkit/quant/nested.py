"""A weight as integers whose scales are integers too: the K-quants of GGUF, value for value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.kernels.native import NESTED_GROUP, AffineShape
from qwenkit.quant.codes import AffineCodes


@dataclass(frozen=True)
class NestedCodes:
    """A weight [out, in] in groups of 256 inputs, within which every 16 or 32 share an integer scale.

    w = scale * inner_scale * (code - 2^(bits - 1)), or where there are minima
    w = scale * inner_scale * code + minimum * inner_minimum.
    codes: uint8 [out, in], one a byte, of 4 or 6 bits; scales, minima: float16 [groups, out]; inner_scales:
    int8 [groups, 8 or 16, out]; inner_minima: uint8 below 64 of the same shape. The last group may be short.
    """

    codes: Tensor
    scales: Tensor
    inner_scales: Tensor
    minima: Tensor | None
    inner_minima: Tensor | None
    bits: int

    @property
    def inner(self) -> int:
        """Inputs that share an integer scale."""
        return NESTED_GROUP // self.inner_scales.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in], computed in float32."""
        columns = self.codes.shape[1]
        scale = _steps(self.scales, self.inner_scales, columns)
        if self.minima is None or self.inner_minima is None:
            return ((self.codes.float() - (1 << (self.bits - 1))) * scale).to(dtype)
        return (self.codes.float() * scale + _steps(self.minima, self.inner_minima, columns)).to(dtype)

    def rows(self, order: Tensor) -> NestedCodes:
        """The rows `order` [n], in that order."""
        minima, factors = (None if p is None else p[..., order] for p in (self.minima, self.inner_minima))
        scales, steps = self.scales[..., order], self.inner_scales[..., order]
        return NestedCodes(self.codes[order], scales, steps, minima, factors, self.bits)

    def stacks_with(self, other: object) -> bool:
        """Whether the rows of both can be those of one weight."""
        return isinstance(other, NestedCodes) and self._form == other._form

    @property
    def _form(self) -> tuple[object, ...]:
        return (self.bits, self.inner, self.minima is None, self.codes.shape[1])

    @classmethod
    def stack(cls, parts: Sequence[NestedCodes]) -> NestedCodes:
        """The rows of all parts, in order. Raises UnsupportedError where their forms differ."""
        first = parts[0]
        if not all(first.stacks_with(part) for part in parts):
            raise UnsupportedError("Weights of different forms cannot be rows of one.")

        def joined(planes: Sequence[Tensor | None]) -> Tensor | None:
            present = [plane for plane in planes if plane is not None]
            return torch.cat(present, dim=-1) if present else None

        return cls(
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scales for part in parts], dim=-1),
            torch.cat([part.inner_scales for part in parts], dim=-1),
            joined([part.minima for part in parts]),
            joined([part.inner_minima for part in parts]),
            first.bits,
        )


Codes = AffineCodes | NestedCodes


def unpack_nested(packed: Tensor, shape: AffineShape) -> NestedCodes:
    """The codes in bytes packed for the kernels (layout: kernels/cpu/affine.h). packed: uint8 [nbytes]."""
    blocks, inners = (shape.rows + 15) // 16, NESTED_GROUP // shape.inner
    groups = packed.view(blocks, shape.groups, -1)
    steps = inners * 16  # bytes of the integer scales

    def plane(start: int, dtype: torch.dtype) -> Tensor:  # float16 [group, row]
        data = groups[..., start : start + 16 * dtype.itemsize].contiguous().view(dtype)
        return data.permute(1, 0, 2).flatten(1)[:, : shape.rows]

    def inner_plane(start: int, dtype: torch.dtype) -> Tensor:  # [group, inner, row]
        data = groups[..., start : start + steps].contiguous().view(dtype).view(blocks, -1, inners, 16)
        return data.permute(1, 2, 0, 3).flatten(2)[..., : shape.rows]

    lows = shape.zeros == "minima"
    tail = 2 * steps if lows else steps
    head = tail + (64 if lows else 32)
    lines = groups[..., head:].reshape(blocks, shape.groups, -1, 64)
    if shape.bits == 4:
        lines = torch.stack((lines & 15, lines >> 4), dim=-2).flatten(2, 3)
    else:
        units = lines.view(blocks, shape.groups, -1, 3, 64)
        low, upper = units[..., :2, :], units[..., 2:, :]
        nibbles = torch.stack((low & 15, low >> 4), dim=-2).flatten(3, 4)
        shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
        lines = (nibbles | (upper >> shifts & 3) << 4).flatten(2, 3)
    # [block, group, line, row, 4 columns] -> [row, column]
    codes = lines.reshape(blocks, shape.groups, -1, 16, 4).permute(0, 3, 1, 2, 4).reshape(blocks * 16, -1)
    return NestedCodes(
        codes[: shape.rows, : shape.columns],
        plane(tail, torch.float16),
        inner_plane(0, torch.int8),
        plane(tail + 32, torch.float16) if lows else None,
        inner_plane(steps, torch.uint8) if lows else None,
        shape.bits,
    )


def _steps(outer: Tensor, inner: Tensor, columns: int) -> Tensor:
    """[groups, out] by [groups, inners, out] -> float32 [out, columns]."""
    each = (outer.float()[:, None] * inner.float()).flatten(0, 1).t()
    return each.repeat_interleave(NESTED_GROUP // inner.shape[1], dim=1)[:, :columns]
