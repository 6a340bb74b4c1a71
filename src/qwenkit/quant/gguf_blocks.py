"""GGUF blocks of 32 as affine codes (block layouts: ggml's, as read by its published dequantization).

Q4_0, Q4_1, Q5_0 and Q8_0 keep every value; for the K-quants see k_quants.py. Other blocks, as Q5_1,
whose 5-bit codes have a minimum, are rounded to 8 bits in groups of 32.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.quant.codes import AffineCodes
from qwenkit.quant.rtn import round_to_nearest

Bytes = NDArray[np.uint8]

_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q8_0": 34}

AFFINE = frozenset(_BLOCK_BYTES)
"""Kinds that `codes_from_blocks` reads."""


def codes_from_blocks(blocks: Tensor, kind: str) -> AffineCodes:
    """blocks: uint8 [out, bytes of a row] of one kind, on the CPU.

    Raises UnsupportedError for a kind that has no affine form.
    """
    if kind not in _BLOCK_BYTES:
        raise UnsupportedError(f"{kind} blocks have no affine form.", "Round their values instead.")
    rows = blocks.shape[0]
    raw = blocks.numpy().reshape(rows, -1, _BLOCK_BYTES[kind])
    codes, scales, minima = _READERS[kind](raw)
    finite = np.isfinite(scales).all() and (minima is None or np.isfinite(minima).all())
    if not finite:
        raise UnsupportedError(
            f"{kind} blocks with scales that float16 cannot hold.", "Load with weights='exact'."
        )
    return AffineCodes(
        torch.from_numpy(codes.reshape(rows, -1)),
        torch.from_numpy(np.ascontiguousarray(scales.reshape(rows, -1).T)),
        None if minima is None else torch.from_numpy(np.ascontiguousarray(minima.reshape(rows, -1).T)),
        4 if kind.startswith("Q4") else 8,
        32,
    )


def nearest_codes(weight: Tensor) -> AffineCodes:
    """Eight bits in groups of 32: what the values of a block without an affine form become."""
    return round_to_nearest(weight, 8, 32)


_Parts = tuple[Bytes, NDArray[np.float16], NDArray[np.float16] | None]


def _halves(raw: Bytes, start: int) -> NDArray[np.float16]:
    """The float16 at byte `start` of each block: [out, blocks]."""
    return np.ascontiguousarray(raw[..., start : start + 2]).view(np.float16)[..., 0]


def _nibbles(raw: Bytes) -> Bytes:
    """[..., n] -> [..., 2 n]: all low halves, then all high ones."""
    return np.concatenate((raw & 15, raw >> 4), axis=-1)


def _q4_0(raw: Bytes) -> _Parts:
    return _nibbles(raw[..., 2:]), _halves(raw, 0), None


def _q4_1(raw: Bytes) -> _Parts:
    return _nibbles(raw[..., 4:]), _halves(raw, 0), _halves(raw, 2)


def _q5_0(raw: Bytes) -> _Parts:
    fifth = np.unpackbits(raw[..., 2:6], axis=-1, bitorder="little")
    codes: Bytes = _nibbles(raw[..., 6:]) + fifth * np.uint8(16) + np.uint8(112)
    return codes, _halves(raw, 0), None  # zero is 16 there and 128 here


def _q8_0(raw: Bytes) -> _Parts:
    return raw[..., 2:] ^ np.uint8(128), _halves(raw, 0), None  # signed -> offset by 128


_READERS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q8_0": _q8_0}
