"""A weight as integers: what quantizing makes, what file formats are read into, and what gets packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.core import UnsupportedError


@dataclass(frozen=True)
class AffineCodes:
    """A weight [out, in]: w = scale * (code - zero), or scale * code + minimum, for each group of inputs.

    codes: uint8 [out, in], one a byte, below 2^bits; group: inputs that share a scale, the last group of a
    row may be shorter; scales: float16 [groups, out]; minima: float16 [groups, out]; eighths: uint8
    [groups, out], zeros of 4-bit codes in eighths of a step, up to 128. With neither the zero is the middle
    code, 2^(bits - 1).
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor | None
    bits: int
    group: int
    eighths: Tensor | None = None

    @property
    def group_of_column(self) -> Tensor:
        """int32 [in]."""
        return torch.arange(self.codes.shape[1], dtype=torch.int32) // self.group

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in], computed in float32."""
        group = self.group_of_column.long()
        scale = self.scales.float().t()[:, group]
        if self.eighths is not None:
            return ((self.codes.float() - self.eighths.float().t()[:, group] / 8) * scale).to(dtype)
        if self.minima is None:
            return ((self.codes.float() - (1 << (self.bits - 1))) * scale).to(dtype)
        return (self.codes.float() * scale + self.minima.float().t()[:, group]).to(dtype)

    def rows(self, order: Tensor) -> AffineCodes:
        """The rows `order` [n], in that order."""
        minima, eighths = (None if p is None else p[:, order] for p in (self.minima, self.eighths))
        return AffineCodes(self.codes[order], self.scales[:, order], minima, self.bits, self.group, eighths)

    def stacks_with(self, other: object) -> bool:
        """Whether the rows of both can be those of one weight."""
        return isinstance(other, AffineCodes) and self._form == other._form

    @property
    def _form(self) -> tuple[object, ...]:
        return (self.bits, self.group, self.minima is None, self.eighths is None, self.codes.shape[1])

    @classmethod
    def stack(cls, parts: Sequence[AffineCodes]) -> AffineCodes:
        """The rows of all parts, in order. Raises UnsupportedError where their forms differ."""
        first = parts[0]
        if not all(first.stacks_with(part) for part in parts):
            raise UnsupportedError("Weights of different forms cannot be rows of one.")
        minima = [part.minima for part in parts if part.minima is not None]
        eighths = [part.eighths for part in parts if part.eighths is not None]
        return cls(
            torch.cat([part.codes for part in parts]),
            torch.cat([part.scales for part in parts], dim=1),
            torch.cat(minima, dim=1) if minima else None,
            first.bits,
            first.group,
            torch.cat(eighths, dim=1) if eighths else None,
        )
