"""Positions: rotary angles, dynamic NTK, and LogN factors (reference: model sections 4 and 5)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def ntk_alpha(length: int, seq_length: int) -> float:
    """Dynamic NTK factor for a prompt of `length` tokens: max(2^ceil(log2(length / seq_length) + 1) - 1, 1).

    Up to the training length it is 1; (1, 2] x gives 3, (2, 4] x gives 7, and so on. A sequence keeps
    the factor of its prompt for life, or its cached keys would stop matching its queries.
    """
    if length <= seq_length:
        return 1.0
    return max(2.0 ** math.ceil(math.log2(length / seq_length) + 1) - 1, 1.0)


@lru_cache(maxsize=64)
def _inverse_frequencies(dim: int, base: float, alpha: float, device: torch.device) -> Tensor:
    scaled = base * alpha ** (dim / (dim - 2)) if dim > 2 else base
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    return 1.0 / (scaled**exponents)


def rotary_table(positions: Tensor, dim: int, base: float, alpha: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [b, s, dim], for positions [b, s] and one NTK alpha a row (or one for all)."""
    frequencies = torch.stack([_inverse_frequencies(dim, base, a, positions.device) for a in alpha])
    angles = positions.float().unsqueeze(-1) * frequencies.unsqueeze(1)  # [b, s, dim / 2]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def logn_factors(positions: Tensor, seq_length: int) -> Tensor:
    """log_{seq_length}(i) for the i-th token (i = position + 1) past seq_length, else 1; float32 [b, s]."""
    count = positions.float() + 1
    return (count.log() / math.log(seq_length)).clamp_min(1.0)
