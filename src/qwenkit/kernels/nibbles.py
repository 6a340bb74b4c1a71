"""Keys and values in 4 bits: what is taken from keys before, the rounding, and a layer of it in plain torch.

32 channels of a token share a scale and a minimum of bfloat16, 5 bits a channel in all. Keys are kept without
the center of their KeyForm, each channel in its steps, and mixed by a Hadamard matrix (as QuaRot,
arXiv:2404.00456); reading undoes all three.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qwenkit.kernels import reference
from qwenkit.kernels.key_form import KeyForm
from qwenkit.kernels.paged import PagedShape, RaggedRows, TorchPagedLayer, _zeros

GROUP = 32  # channels of a scale
ANGLE = 32767  # a kept cosine or sine of 1


def mix(x: Tensor) -> Tensor:
    """Each GROUP of the last axis times the Hadamard matrix of 1 and -1; twice is GROUP times x."""
    size = x.shape
    h = 1
    while h < GROUP:
        a, b = x.reshape(*size[:-1], -1, 2, h).unbind(-2)
        x = torch.stack((a + b, a - b), dim=-2)
        h *= 2
    return x.reshape(size)


def round_groups(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., d] float32 as scale * codes + minimum, by GROUP: codes 0 to 15 uint8 [..., groups, GROUP].

    scale and minimum: bfloat16 [..., groups]; minimum = min, scale = (max - min) / 15, both rounded before
    codes are, to nearest; where the scale is 0, codes are. The last group may be of fewer channels.
    """
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % GROUP), value=torch.nan)
    groups = padded.view(*padded.shape[:-1], -1, GROUP)
    there = torch.arange(padded.shape[-1], device=x.device).view(-1, GROUP) < x.shape[-1]
    low = groups.where(there, torch.inf).amin(-1)
    scale = ((groups.where(there, -torch.inf).amax(-1) - low) / 15).bfloat16()
    low = low.bfloat16()
    steps = (groups - low.float()[..., None]) / scale.float()[..., None]
    steps = steps.where(there & (scale > 0)[..., None], 0)
    return steps.round().clamp(0, 15).to(torch.uint8), scale, low


class TorchNibbleLayer(TorchPagedLayer):
    """The format int4 in plain torch, kept in 4 bits too: a byte has channels k and k + 16 of a group.

    beside: a layer of the same cache that is always computed before; it keeps the angles for both.
    """

    def __init__(
        self,
        shape: PagedShape,
        device: torch.device | str = "cpu",
        keys: KeyForm | None = None,
        beside: TorchNibbleLayer | None = None,
    ) -> None:
        self.shape = shape
        slots, groups = shape.blocks * shape.block_size, -(-shape.head_dim // GROUP)
        size = slots, shape.kv_heads, groups
        self._stored = [_zeros((*size, GROUP // 2), torch.uint8, device) for _ in range(2)]
        self._planes = [_zeros((2, *size), torch.bfloat16, device) for _ in range(2)]
        self._keeps_angles = beside is None
        own = _zeros((slots, 2, shape.head_dim // 2) if beside is None else (0,), torch.int16, device)
        self._angles: Tensor = own if beside is None else beside._angles
        form = keys or KeyForm.plain(shape.kv_heads, shape.head_dim)
        form.check(shape.kv_heads, shape.head_dim, centered=True)
        self._step, self._center = form.padded().to(device).unbind(1)
        self._rotary = 0

    @property
    def nbytes(self) -> int:
        return super().nbytes + (self._angles.nbytes if self._keeps_angles else 0)

    def attend(
        self,
        qkv: Tensor,
        angles: tuple[Tensor, Tensor],
        logn: Tensor | None,
        rows: RaggedRows,
        window: int | None = None,
    ) -> Tensor:
        half = angles[0].shape[1] // 2
        self._rotary = 2 * half
        if self._keeps_angles:
            kept = (torch.stack([x[:, :half] for x in angles], 1) * ANGLE).round().to(torch.int16)
            for row, (first, end, start) in enumerate(rows.spans()):
                slots = self._slots(rows.tables[row], start + end - first).to(qkv.device)
                self._angles[slots[start:], :, :half] = kept[first:end]
        return super().attend(qkv, angles, logn, rows, window)

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        super().copy(pairs)
        if pairs and self._keeps_angles:
            source, target = self._inside(pairs)
            self._angles[target] = self._angles[source]

    def _turn_keys(self, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return reference.apply_rotary(
            (k.float() - self._center[:, : self.shape.head_dim])[None], cos[None], sin[None]
        )[0]

    def _write(self, which: int, slots: Tensor, x: Tensor) -> None:
        x = x.float()
        if which == 0:
            x = mix(torch.nn.functional.pad(x, (0, -x.shape[-1] % GROUP)) / self._step)
        codes, scale, low = round_groups(x)
        self._stored[which][slots] = codes[..., : GROUP // 2] | codes[..., GROUP // 2 :] << 4
        self._planes[which][0, slots], self._planes[which][1, slots] = scale, low

    def _read(self, which: int, slots: Tensor) -> Tensor:
        stored = self._stored[which][slots]
        codes = torch.cat((stored & 15, stored >> 4), dim=-1).float()
        scale, low = self._planes[which][:, slots].float()
        d = self.shape.head_dim
        x = (codes * scale[..., None] + low[..., None]).flatten(-2)
        if which == 0:
            cos, sin = (
                (self._angles[slots][..., : self._rotary // 2].float() / ANGLE).repeat(1, 1, 2).unbind(1)
            )
            center = self._center[:, :d].expand(len(slots), -1, -1)
            turned = reference.apply_rotary(center[None], cos[None], sin[None])[0]
            x = (mix(x) * (self._step / GROUP))[..., :d] + turned
        values: Tensor = x[..., :d].to(self.shape.dtype)
        return values
