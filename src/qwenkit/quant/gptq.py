"""The packing of GPTQ checkpoints (reference: model section 10): integers in 32-bit words, little end first.

Codes are packed along the input axis, zero points along the output axis. Zero points are stored minus
one, except in the later "gptq_v2" format, which stores them plainly.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from qwenkit.core import UnsupportedError

BITS = (4, 8)
_BLOCK = 256  # words; a block of source and one of result fit the cache


def check_bits(bits: int) -> None:
    """Raise UnsupportedError unless codes of this width are implemented."""
    if bits not in BITS:
        raise UnsupportedError(
            f"GPTQ weights of {bits} bits.", "qwenkit reads 4 and 8 bits; quantize the original model again."
        )


def packed_bits(outputs: int, inputs: int, bits: int, group: int) -> int:
    """Bits of a packed weight: a code for each, a 16-bit scale and a zero point for each group of a row.

    group: inputs that share a scale, -1 for all. g_idx, one word an input, is not counted.
    """
    groups = 1 if group == -1 else -(-inputs // group)
    return outputs * (inputs * bits + groups * (16 + bits))


def codes_from_words(qweight: Tensor, bits: int) -> Tensor:
    """qweight int32 [in * bits / 32, out] -> uint8 [out, in * bits / 8]; 4 bits: two a byte, even first.

    Transposing whole words is all it takes: the bytes of a word already hold its codes in order.
    """
    check_bits(bits)
    return _transposed(qweight).view(torch.uint8)


def words_from_codes(codes: Tensor, bits: int) -> Tensor:
    """Inverse of `codes_from_words`."""
    check_bits(bits)
    return _transposed(_dense(codes).view(torch.int32))


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


def _transposed(matrix: Tensor) -> Tensor:
    """A transposed copy. On the CPU in square blocks and threads: several times faster than row by row."""
    if matrix.device.type != "cpu":
        return _dense(matrix.t())
    source = matrix.numpy()
    out = np.empty(source.shape[::-1], source.dtype)
    rows, columns = source.shape

    def fill(column: int) -> None:
        for row in range(0, rows, _BLOCK):
            part = source[row : row + _BLOCK, column : column + _BLOCK]
            out[column : column + _BLOCK, row : row + _BLOCK] = part.T

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for _ in threads.map(fill, range(0, columns, _BLOCK)):
            pass
    return torch.from_numpy(out)


def _dense(tensor: Tensor) -> Tensor:
    """A copy with the strides of its shape; `contiguous` may keep odd strides where a size is 1."""
    return tensor.clone(memory_format=torch.contiguous_format)
