"""Linear layers whose weight is integers with a scale and a zero point per group of inputs.

Knows number formats, not files: what a checkpoint calls its tensors is none of its business.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qwenkit.core import CheckpointError
from qwenkit.kernels import affine_dequantize, affine_linear
from qwenkit.quant.gptq import (
    check_bits,
    codes_from_words,
    pack_zeros,
    unpack_zeros,
    words_from_codes,
)


class AffineLinear(nn.Module):
    """y = x w^T + bias with w[o, i] = scales[g, o] * (code[o, i] - zeros[g, o]), g = group_of_column[i].

    codes: uint8 [out, in] for 8 bits, [out, in / 2] for 4 (two a byte, even column in the low half);
    scales: float [groups, out], in the precision of the checkpoint; zeros: uint8 [groups, out];
    group_of_column: int32 [in]; bias: float [out] or None. Buffers, not parameters: nothing here is trained.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group_of_column: Tensor
    bias: Tensor | None

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor,
        group_of_column: Tensor,
        *,
        bits: int,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_bits(bits)
        self.bits = bits
        self.in_features = group_of_column.shape[0]
        self.out_features = codes.shape[0]
        groups = scales.shape[0]
        wanted = {
            "codes": (codes, (self.out_features, self.in_features * bits // 8)),
            "scales": (scales, (groups, self.out_features)),
            "zeros": (zeros, (groups, self.out_features)),
        }
        for name, (tensor, shape) in wanted.items():
            if tuple(tensor.shape) != shape:
                raise CheckpointError(
                    f"Quantized weight: {name} has shape {list(tensor.shape)}, expected {list(shape)}.",
                    "The group size or the number of bits does not match the weights.",
                )
        if groups == 0 or int(group_of_column.min()) < 0 or int(group_of_column.max()) >= groups:
            raise CheckpointError(
                f"Quantized weight: a column belongs to a group outside 0...{groups - 1}.",
                "The file is damaged or its group size is not the one stated.",
            )
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self.register_buffer("group_of_column", group_of_column.to(torch.int32))
        self.register_buffer("bias", bias)

    @classmethod
    def from_gptq(
        cls,
        qweight: Tensor,
        qzeros: Tensor,
        scales: Tensor,
        g_idx: Tensor | None,
        bits: int,
        bias: Tensor | None = None,
        *,
        zeros_minus_one: bool = True,
    ) -> AffineLinear:
        """From the tensors of a GPTQ checkpoint (shapes: reference model section 10).

        g_idx None means consecutive groups of equal size. Raises CheckpointError when shapes disagree.
        """
        check_bits(bits)
        in_features, groups = qweight.shape[0] * 32 // bits, scales.shape[0]
        if g_idx is None:
            if groups == 0 or in_features % groups:
                raise CheckpointError(
                    f"{in_features} inputs do not divide into {groups} groups.",
                    "The checkpoint needs its g_idx tensors.",
                )
            g_idx = torch.arange(in_features, dtype=torch.int32) // (in_features // groups)
        zeros = unpack_zeros(qzeros, bits, stored_minus_one=zeros_minus_one)
        return cls(codes_from_words(qweight, bits), scales, zeros, g_idx, bits=bits, bias=bias)

    def to_gptq(self, *, zeros_minus_one: bool = True) -> dict[str, Tensor]:
        """qweight, qzeros, scales and g_idx as GPTQ checkpoints store them; exact inverse of `from_gptq`."""
        return {
            "qweight": words_from_codes(self.codes, self.bits),
            "qzeros": pack_zeros(self.zeros, self.bits, stored_minus_one=zeros_minus_one),
            "scales": self.scales,
            "g_idx": self.group_of_column,
        }

    @classmethod
    def stack(cls, parts: Sequence[nn.Module]) -> nn.Module:
        """One layer with the outputs of all parts in order; a FusedLinear where their formats differ."""
        if len(parts) == 1:
            return parts[0]
        affine = [part for part in parts if isinstance(part, AffineLinear)]
        first = affine[0] if affine else None
        if first is None or len(affine) != len(parts) or not all(first._stacks_with(part) for part in affine):
            return FusedLinear(parts)
        biases = [part.bias for part in affine if part.bias is not None]
        return cls(
            torch.cat([part.codes for part in affine]),
            torch.cat([part.scales for part in affine], dim=1),
            torch.cat([part.zeros for part in affine], dim=1),
            first.group_of_column,
            bits=first.bits,
            bias=torch.cat(biases) if biases else None,
        )

    def _stacks_with(self, other: AffineLinear) -> bool:
        return (
            self.bits == other.bits
            and self.scales.dtype == other.scales.dtype
            and (self.bias is None) == (other.bias is None)
            and torch.equal(self.group_of_column, other.group_of_column)
        )

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight it stands for, [out, in]."""
        return affine_dequantize(
            self.codes, self.scales, self.zeros, self.group_of_column, dtype, bits=self.bits
        )

    def forward(self, x: Tensor) -> Tensor:
        y = affine_linear(x, self.codes, self.scales, self.zeros, self.group_of_column, bits=self.bits)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return (
            f"in={self.in_features}, out={self.out_features}, bits={self.bits}, groups={self.scales.shape[0]}"
        )


class FusedLinear(nn.Module):
    """Concatenates the outputs of its parts: q, k and v when one AffineLinear cannot hold them all."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)
