"""The packing of GPTQ checkpoints (reference: model section 10): integers in 32-bit words, little end first.

Codes are packed along the input axis, zero points along the output axis. Zero points are stored minus
one, except in the later "gptq_v2" format, which stores them plainly.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qwenkit.core import UnsupportedError

BITS = (4, 8)


def check_bits(bits: int) -> None:
    """Raise UnsupportedError unless codes of this width are implemented."""
    if bits not in BITS:
        raise UnsupportedError(
            f"GPTQ weights of {bits} bits.", "qwenkit reads 4 and 8 bits; quantize the original model again."
        )


def codes_from_words(qweight: Tensor, bits: int) -> Tensor:
    """qweight int32 [in * bits / 32, out] -> uint8 [out, in * bits / 8]; 4 bits: two a byte, even first.

    Transposing whole words is all it takes: the bytes of a word already hold its codes in order.
    """
    check_bits(bits)
    return _dense(qweight.t()).view(torch.uint8)


def words_from_codes(codes: Tensor, bits: int) -> Tensor:
    """Inverse of `codes_from_words`."""
    check_bits(bits)
    return _dense(_dense(codes).view(torch.int32).t())


def unpack_nibbles(packed: Tensor) -> Tensor:
    """uint8 [..., n] -> uint8 [..., 2n]; the low half of each byte comes first."""
    return torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)


def pack_nibbles(codes: Tensor) -> Tensor:
    """Inverse of `unpack_nibbles`; codes must be below 16 and their last dimension even."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_zeros(qzeros: Tensor, bits: int, *, stored_minus_one: bool = True) -> Tensor:
    """qzeros int32 [groups, out * bits / 32] -> zero points uint8 [groups, out], taken modulo 2^bits."""
    check_bits(bits)
    raw = _dense(qzeros).view(torch.uint8)
    zeros = unpack_nibbles(raw) if bits == 4 else raw.clone()
    return zeros.add(int(stored_minus_one)).bitwise_and(2**bits - 1)


def pack_zeros(zeros: Tensor, bits: int, *, stored_minus_one: bool = True) -> Tensor:
    """Inverse of `unpack_zeros`."""
    check_bits(bits)
    stored = (zeros - int(stored_minus_one)) & (2**bits - 1)
    return _dense(pack_nibbles(stored) if bits == 4 else stored).view(torch.int32)


def _dense(tensor: Tensor) -> Tensor:
    """A copy with the strides of its shape; `contiguous` may keep odd strides where a size is 1."""
    if tensor.device.type == "cpu":  # numpy copies a transposed matrix four times as fast
        return torch.from_numpy(np.array(tensor.numpy(), order="C"))
    return tensor.clone(memory_format=torch.contiguous_format)
