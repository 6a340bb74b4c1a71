"""Keys and values in 4 bits: what is taken from keys before, the rounding, and a layer of it in plain torch.

32 channels of a token share a scale and a minimum of bfloat16, 5 bits a channel in all. A few channels of
keys are far larger than the others by the bias of their projection, which is the same for all tokens and
turns with the position; what is left still differs by channel. So keys are kept without that bias, each
channel in steps of its own, and mixed by a Hadamard matrix (as QuaRot, arXiv:2404.00456); reading undoes
all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.kernels import reference
from qwenkit.kernels.paged import PagedShape, RaggedRows, TorchPagedLayer, _zeros

GROUP = 32  # channels of a scale
ANGLE = 32767  # a kept cosine or sine of 1


@dataclass(frozen=True, eq=False)
class KeyForm:
    """What the keys of a layer's heads have in common: float32 [kv_heads, head_dim] each.

    center: the key of an input of zeros, before rotation. step: by which channels are divided, positive.
    """

    center: Tensor
    step: Tensor

    @classmethod
    def plain(cls, shape: PagedShape) -> KeyForm:
        """Nothing in common."""
        size = shape.kv_heads, shape.head_dim
        return cls(torch.zeros(size), torch.ones(size))

    @classmethod
    def of_samples(cls, queries: Tensor, keys: Tensor, center: Tensor, rotary: int) -> KeyForm:
        """From some tokens' queries [n, heads, d] and keys [n, kv_heads, d] before rotation.

        An error of a key's channel costs in proportion to the size of queries there, so steps are as the root
        of how much larger keys (without center) are than queries; alike in both channels of a rotated pair.
        """
        n, kv_heads, d = keys.shape
        sizes = []
        for x in (keys.float() - center.float(), queries.float().view(n, kv_heads, -1, d).transpose(1, 2)):
            size = x.square().flatten(0, x.dim() - 3).mean(0)  # [kv_heads, d]
            first, second = size[:, : rotary // 2], size[:, rotary // 2 : rotary]
            sizes.append(torch.cat((first + second, first + second, 2 * size[:, rotary:]), dim=1))
        step = (sizes[0] / sizes[1]) ** 0.25
        return cls(center.float(), torch.where((step > 0) & step.isfinite(), step, 1))

    def padded(self) -> Tensor:
        """float32 [kv_heads, 2, whole groups of channels]: steps, then 1; center, then 0."""
        pad = (0, -self.step.shape[-1] % GROUP)
        sides = (torch.nn.functional.pad(x, pad, value=v) for x, v in ((self.step, 1.0), (self.center, 0.0)))
        return torch.stack(tuple(sides), dim=1).contiguous()


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
        self._step, self._center = (keys or KeyForm.plain(shape)).padded().to(device).unbind(1)
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


def check_form(keys: KeyForm, shape: PagedShape) -> None:
    """Raises UnsupportedError for a form of other heads, or with steps that nothing can be divided by."""
    size = shape.kv_heads, shape.head_dim
    if keys.center.shape != size or keys.step.shape != size or not bool((keys.step > 0).all()):
        raise UnsupportedError(
            f"The form of keys is for {tuple(keys.step.shape)}, or has a step of 0, not {size}."
        )
