"""What one forward pass needs to know of its rows beside their tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qwenkit.kernels import apply_rotary, attention
from qwenkit.model.cache import KVCache
from qwenkit.model.rope import rotary_table


@dataclass(frozen=True, eq=False)
class TokenBatch(ABC):
    """The tokens [b, s] of a pass: where they stand in their texts, and how they attend.

    positions: int64 [b, s]; index of each token in its own text (padding excluded, clamped at 0).
    ntk_alpha: NTK factors (see `angles`). longest: tokens of the longest text including these, padding
        excluded; kept as a number so that nothing has to be read back from the device to know whether
        LogN acts.
    """

    positions: Tensor
    ntk_alpha: tuple[float, ...] = (1.0,)
    longest: int = 0

    @abstractmethod
    def angles(self, dim: int, base: float, *, ntk: bool) -> tuple[Tensor, Tensor]:
        """cos and sin, float32 [b, s, dim]; without `ntk` every factor is 1."""

    @abstractmethod
    def self_attention(
        self, layer: int, qkv: Tensor, split: list[int], angles: tuple[Tensor, Tensor], logn: Tensor | None
    ) -> Tensor:
        """Rotate, keep and attend. qkv: [b, s, heads + 2 kv_heads, d] as projected, `split` the three counts.

        logn: float32 [b, s], factors of the queries, or None. Returns [b, s, heads * d].
        """

    def through(
        self, blocks: Iterable[nn.Module], x: Tensor, angles: tuple[Tensor, Tensor], logn: Tensor | None
    ) -> Tensor:
        """x [b, s, h] after all blocks. A batch may know a faster way to the same result."""
        for block in blocks:
            x = block(x, self, angles, logn)
        return x


@dataclass(frozen=True, eq=False)
class Batch(TokenBatch):
    """Rows of one length, which may be left-padded.

    ntk_alpha: one factor a row, or a single one for all.
    mask: bool [b, 1, s, K], or None when the causal rule alone decides.
    cache: earlier keys and values; None when the pass has no past and leaves none (training).
    """

    mask: Tensor | None = None
    cache: KVCache | None = None

    @classmethod
    def make(
        cls,
        rows: int,
        new: int,
        *,
        past: int = 0,
        pads: list[int] | None = None,
        ntk_alpha: tuple[float, ...] = (1.0,),
        cache: KVCache | None = None,
        device: torch.device | str = "cpu",
    ) -> Batch:
        """`new` slots for each of `rows` after `past` cached ones; row r starts with pads[r] empty slots.

        Chunked prefill is causal inside its chunk; a padded row equals its unpadded run.
        """
        slots = torch.arange(past, past + new, device=device)
        if pads is None or not any(pads):
            mask = None
            if past and new > 1:  # a chunk: each new slot sees the past and its own beginning
                mask = (slots[:, None] >= torch.arange(past + new, device=device))[None, None]
            return cls(slots.expand(rows, new), ntk_alpha, past + new, mask, cache)
        pad = torch.tensor(pads, device=device)
        keys = torch.arange(past + new, device=device)
        mask = (slots[:, None] >= keys) & (keys >= pad[:, None, None])  # [b, s, K]
        positions = (slots - pad[:, None]).clamp_min(0)
        return cls(positions, ntk_alpha, past + new - min(pads), mask[:, None], cache)

    def angles(self, dim: int, base: float, *, ntk: bool) -> tuple[Tensor, Tensor]:
        return rotary_table(self.positions, dim, base, self.ntk_alpha if ntk else (1.0,))

    def self_attention(
        self, layer: int, qkv: Tensor, split: list[int], angles: tuple[Tensor, Tensor], logn: Tensor | None
    ) -> Tensor:
        q, k, v = torch.split(qkv, split, dim=2)  # [b, s, heads, d]
        q, k = apply_rotary(q, *angles), apply_rotary(k, *angles)
        if logn is not None:
            q = q * logn.to(q.dtype)[:, :, None, None]
        out = self.attend(layer, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return out.transpose(1, 2).flatten(2)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of new queries over the past and themselves; all [b, heads, s, d] -> [b, heads, s, d]."""
        if self.cache is not None:
            k, v = self.cache.update(layer, k, v)
        causal = self.mask is None and q.shape[2] > 1
        return attention(q, k, v, self.mask, causal=causal)
