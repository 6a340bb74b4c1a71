"""The K-quants of GGUF as nested codes: every value is kept (block layouts: ggml's, as read by its published
dequantization).

A block holds 256 weights, one or two float16, and small integers that scale them for 16 or 32 weights.
Q2_K and Q3_K run as 4-bit codes, Q5_K as 6-bit ones: no kernel has 2, 3 or 5 bits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.quant.nested import NestedCodes

Bytes = NDArray[np.uint8]

_BLOCK_BYTES = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}

NESTED = frozenset(_BLOCK_BYTES)
"""Kinds that `codes_from_k_blocks` reads."""


def codes_from_k_blocks(blocks: Tensor, kind: str) -> NestedCodes:
    """blocks: uint8 [out, bytes of a row] of one kind, on the CPU.

    Raises UnsupportedError for scales that are no numbers.
    """
    rows = blocks.shape[0]
    codes, scale, steps, minimum, factors, bits = _READERS[kind](
        blocks.numpy().reshape(rows, -1, _BLOCK_BYTES[kind])
    )
    if not (np.isfinite(scale).all() and (minimum is None or np.isfinite(minimum).all())):
        raise UnsupportedError(f"{kind} blocks with scales that are no numbers.", "Download the file again.")

    def first_groups(plane: NDArray[np.generic]) -> Tensor:  # [out, groups ...] -> [groups ..., out]
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(plane, 0, -1)))

    return NestedCodes(
        torch.from_numpy(codes.reshape(rows, -1)),
        first_groups(scale),
        first_groups(steps),
        None if minimum is None else first_groups(-minimum),
        None if factors is None else first_groups(factors),
        bits,
    )


# Codes [out, blocks, 256], scale, integer scales, what is subtracted, its factors, bits of the codes.
_Halves = NDArray[np.float16]
_Parts = tuple[Bytes, _Halves, NDArray[np.int8], _Halves | None, Bytes | None, int]


def _half(raw: Bytes, start: int) -> _Halves:
    return np.ascontiguousarray(raw[..., start : start + 2]).view(np.float16)[..., 0]


def _planes(raw: Bytes, bits: int, run: int) -> Bytes:
    """[..., n] -> [..., 8 n / bits]: of each run of bytes first the lowest bits of all, then the next."""
    runs = raw.reshape(*raw.shape[:-1], -1, 1, run)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (runs >> shifts & np.uint8((1 << bits) - 1)).reshape(*raw.shape[:-1], -1)


def _six_bits(packed: Bytes) -> tuple[Bytes, Bytes]:
    """12 bytes: eight scales and eight minima of 6 bits (Q4_K, Q5_K)."""
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=-1)
    low = np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=-1)
    return scale, low


def _q2_k(raw: Bytes) -> _Parts:
    steps = raw[..., :16]
    codes = _planes(raw[..., 16:80], 2, 32)
    return codes, _half(raw, 80), (steps & 15).view(np.int8), _half(raw, 82), steps >> np.uint8(4), 4


def _q3_k(raw: Bytes) -> _Parts:
    codes = _planes(raw[..., 32:96], 2, 32) | _planes(raw[..., :32], 1, 32) << np.uint8(2)
    packed = raw[..., 96:108]
    low = np.concatenate((packed[..., :8] & 15, packed[..., :8] >> 4), axis=-1)
    high = _planes(packed[..., 8:], 2, 4)
    steps = (low | high << np.uint8(4)).view(np.int8) - np.int8(32)
    return codes + np.uint8(4), _half(raw, 108), steps, None, None, 4  # zero is 4 there and 8 here


def _q4_k(raw: Bytes) -> _Parts:
    steps, factors = _six_bits(raw[..., 4:16])
    return _planes(raw[..., 16:], 4, 32), _half(raw, 0), steps.view(np.int8), _half(raw, 2), factors, 4


def _q5_k(raw: Bytes) -> _Parts:
    steps, factors = _six_bits(raw[..., 4:16])
    codes = _planes(raw[..., 48:], 4, 32) | _planes(raw[..., 16:48], 1, 32) << np.uint8(4)
    return codes, _half(raw, 0), steps.view(np.int8), _half(raw, 2), factors, 6


def _q6_k(raw: Bytes) -> _Parts:
    codes = _planes(raw[..., :128], 4, 64) | _planes(raw[..., 128:192], 2, 32) << np.uint8(4)
    return codes, _half(raw, 208), raw[..., 192:208].view(np.int8), None, None, 6


_READERS = {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
