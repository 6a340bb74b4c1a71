"""What the keys of a layer have in common, and so need not be said again by the few bits of every token.

A few channels of keys are far larger than the others by the bias of their projection, which is the same for
all tokens and turns with the position; what is left still differs by channel. Caches of 4 bits undo both;
those of 8 bits only divide channels by steps and multiply queries by them (as SmoothQuant, arXiv:2211.10438).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.core import UnsupportedError

TILE = 32  # channels that kernels take together


@dataclass(frozen=True, eq=False)
class KeyForm:
    """What the keys of a layer's heads have in common: float32 [kv_heads, head_dim] each.

    center: the key of an input of zeros, before rotation. step: by which channels are divided, positive.
    """

    center: Tensor
    step: Tensor

    @classmethod
    def plain(cls, kv_heads: int, head_dim: int) -> KeyForm:
        """Nothing in common."""
        return cls(torch.zeros(kv_heads, head_dim), torch.ones(kv_heads, head_dim))

    @classmethod
    def of_samples(cls, queries: Tensor, keys: Tensor, center: Tensor, rotary: int) -> KeyForm:
        """From some tokens' queries [n, heads, d] and keys [n, kv_heads, d] before rotation.

        An error of a key's channel costs in proportion to the size of queries there, so steps are as the root
        of how much larger keys (without center) are than queries; alike in both channels of a rotated pair,
        and 1 where a size is 0 or no number.
        """
        kv_heads, d = keys.shape[1:]
        size = _size(keys.float() - center.float(), rotary)
        beside = _size(queries.float().view(len(queries), kv_heads, -1, d).transpose(1, 2), rotary)
        step = (size / beside) ** 0.25
        return cls(center.float(), torch.where((step > 0) & step.isfinite(), step, 1))

    def in_powers_of_two(self) -> KeyForm:
        """Steps by which keys are divided and queries multiplied without losing a digit of either."""
        return KeyForm(self.center, self.step.log2().round().exp2())

    def check(self, kv_heads: int, head_dim: int, *, centered: bool) -> None:
        """Raises UnsupportedError for a form of other heads, with steps that nothing can be divided by, or,
        where nothing is taken off keys, with a center."""
        size = kv_heads, head_dim
        if not centered and bool((self.center != 0).any()):
            raise UnsupportedError("The form of keys has a center, which nothing takes off keys of 8 bits.")
        if self.center.shape != size or self.step.shape != size or not bool((self.step > 0).all()):
            raise UnsupportedError(
                f"The form of keys is for {tuple(self.step.shape)}, or has a step of 0, not {size}."
            )

    def padded(self) -> Tensor:
        """float32 [kv_heads, 2, whole tiles of channels]: steps, then 1; center, then 0."""
        pad = (0, -self.step.shape[-1] % TILE)
        sides = (torch.nn.functional.pad(x, pad, value=v) for x, v in ((self.step, 1.0), (self.center, 0.0)))
        return torch.stack(tuple(sides), dim=1).contiguous()


def _size(x: Tensor, rotary: int) -> Tensor:
    """Twice the mean square of x [..., kv_heads, d] -> [kv_heads, d], alike in channels of a rotated pair."""
    size = x.square().flatten(0, x.dim() - 3).mean(0)
    first, second = size[:, : rotary // 2], size[:, rotary // 2 : rotary]
    return torch.cat((first + second, first + second, 2 * size[:, rotary:]), dim=1)
