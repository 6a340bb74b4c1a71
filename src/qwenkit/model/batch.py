"""What one forward pass needs to know of its rows beside their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.kernels import attention
from qwenkit.model.cache import KVCache


@dataclass(frozen=True, eq=False)
class Batch:
    """Positions, NTK factors and attention of the rows of a pass. Rows may be left-padded.

    positions: int64 [b, s]; index of each token in its own text (padding excluded, clamped at 0).
    ntk_alpha: one factor a row, or a single one for all.
    longest: tokens of the longest row including these, padding excluded; kept as a number so that
        nothing has to be read back from the device to know whether LogN acts.
    mask: bool [b, 1, s, K], or None when the causal rule alone decides.
    cache: earlier keys and values; None when the pass has no past and leaves none (training).
    """

    positions: Tensor
    ntk_alpha: tuple[float, ...] = (1.0,)
    longest: int = 0
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

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of new queries over the past and themselves; all [b, heads, s, d] -> [b, heads, s, d]."""
        if self.cache is not None:
            k, v = self.cache.update(layer, k, v)
        causal = self.mask is None and q.shape[2] > 1
        return attention(q, k, v, self.mask, causal=causal)
