"""Attention over keys and values kept in blocks: the contract of one layer, and plain torch for it.

Knows tensors, positions and block numbers. Does not know requests, scheduling or models. A row is a run of
new tokens of one text; the rows of a step lie one after the other, of any lengths, with no padding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.kernels import reference
from qwenkit.kernels.key_form import KeyForm

KVFormat = Literal["float", "int8", "int8-affine", "int4", "int8-original"]
"""float: the dtype of the model. int8: codes of a token and head times one scale (symmetric). int8-affine:
times a scale, plus a minimum. Both keep keys by the steps of a KeyForm. int4: see nibbles.py. int8-original:
the scheme of 2023 (reference: model section 7), one scale and zero for a head over all tokens that a step
adds to a text, cast by truncation; kept for parity."""

KV_FORMATS: tuple[KVFormat, ...] = get_args(KVFormat)
FORMED: tuple[KVFormat, ...] = ("int8", "int8-affine", "int4")
"""Formats that keep keys by what they have in common."""


@dataclass(frozen=True)
class PagedShape:
    """Blocks of one layer: `blocks` of `block_size` tokens, each with kv_heads keys and values of head_dim.

    heads: query heads, a multiple of kv_heads. dtype: of queries, keys and values where they are computed.
    """

    blocks: int
    block_size: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    format: KVFormat = "float"


@dataclass(frozen=True, eq=False)
class RaggedRows:
    """Which tokens a step computes, and where their keys and values are.

    starts: int32 [rows], position of a row's first token in its text. offsets: int32 [rows + 1]; row r is
    the tokens offsets[r] to offsets[r + 1] - 1 of the step. tables: int32 [rows, most blocks]; position p
    of row r is slot p % block_size of block tables[r, p // block_size], entries past the last are 0.
    positions: int64 [tokens]. All but positions are on the CPU.
    """

    starts: Tensor
    offsets: Tensor
    tables: Tensor
    positions: Tensor

    @classmethod
    def make(
        cls,
        starts: Sequence[int],
        counts: Sequence[int],
        tables: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
    ) -> RaggedRows:
        """Rows of counts[r] tokens from position starts[r] on."""
        width = max(map(len, tables))
        padded = [[*table, *[0] * (width - len(table))] for table in tables]
        spans = (range(start, start + count) for start, count in zip(starts, counts, strict=True))
        positions = torch.from_numpy(np.array(list(chain.from_iterable(spans)), np.int64))
        return cls(_int32(starts), _int32([0, *accumulate(counts)]), _int32(padded), positions.to(device))

    @cached_property
    def addresses(self) -> tuple[int, int, int, int, int]:
        """Of starts, offsets, tables; then rows and width of the tables: for compiled code, once a step."""
        shapes = (len(self.starts),), (len(self.starts) + 1,), (len(self.starts), self.tables.shape[-1])
        tensors = (self.starts, self.offsets, self.tables)
        for tensor, shape in zip(tensors, shapes, strict=True):
            if tensor.shape != shape or tensor.dtype != torch.int32 or not tensor.is_contiguous():
                raise UnsupportedError(
                    f"Rows need contiguous int32 {shape}, not {tensor.dtype} {tensor.shape}."
                )
        starts, offsets, tables = (tensor.data_ptr() for tensor in tensors)
        return starts, offsets, tables, len(self.starts), self.tables.shape[1]

    def spans(self) -> list[tuple[int, int, int]]:
        """(first token of the step, one past the last, position of the first) of each row."""
        ends = self.offsets.tolist()
        return list(zip(ends[:-1], ends[1:], self.starts.tolist(), strict=True))


class PagedLayer(ABC):
    """The keys and values of one layer.

    A query's result depends on its own text alone: neither on other rows nor on how its text was cut into
    steps. The one exception is int8-original, whose scales are those of a step.
    """

    shape: PagedShape

    @abstractmethod
    def attend(
        self,
        qkv: Tensor,
        angles: tuple[Tensor, Tensor],
        logn: Tensor | None,
        rows: RaggedRows,
        window: int | None = None,
    ) -> Tensor:
        """Keep the new keys and values, then attend: causal softmax(q k^T / sqrt(d)) v of every new token.

        qkv: [tokens, heads + 2 kv_heads, d] in shape.dtype as projected: queries, keys, values. angles: cos
        and sin, float32 [tokens, r], which rotate queries and keys (reference.apply_rotary). logn: float32
        [tokens], factors of the rotated queries, or None for ones. window: each token sees itself and the
        window - 1 before it; None: all. Returns [tokens, heads, d] in shape.dtype.
        """

    @abstractmethod
    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, (source, target) each; no target is the source of another."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory held, once every block was written."""

    @property
    @abstractmethod
    def kernel(self) -> str:
        """What computes, in words for a person."""


class TorchPagedLayer(PagedLayer):
    """PagedLayer in plain torch, on any device: readable, slow, the oracle for the compiled one."""

    def __init__(
        self, shape: PagedShape, device: torch.device | str = "cpu", keys: KeyForm | None = None
    ) -> None:
        self.shape = shape
        form = formed(shape, keys)
        self._key_step = None if form is None else form.step.to(device)
        slots = (shape.blocks * shape.block_size, shape.kv_heads)
        stored = shape.dtype if shape.format == "float" else torch.uint8
        # Keys, then values; a slot never written is never read, but zeros keep a masked NaN out.
        self._stored = [_zeros((*slots, shape.head_dim), stored, device) for _ in range(2)]
        planes = 0 if shape.format == "float" else 2  # scale and minimum
        self._planes = [_zeros((planes, *slots, 1), torch.float32, device) for _ in range(2)]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self._stored, *self._planes))

    @property
    def kernel(self) -> str:
        return "torch"

    def attend(
        self,
        qkv: Tensor,
        angles: tuple[Tensor, Tensor],
        logn: Tensor | None,
        rows: RaggedRows,
        window: int | None = None,
    ) -> Tensor:
        s = self.shape
        q, k, v = torch.split(qkv, [s.heads, s.kv_heads, s.kv_heads], dim=1)
        cos, sin = angles
        q = reference.apply_rotary(q[None], cos[None], sin[None])[0]
        k = self._turn_keys(k, cos, sin)
        if logn is not None:
            q = q * logn.to(q.dtype)[:, None, None]
        out = torch.empty_like(q)
        for row, (first, end, start) in enumerate(rows.spans()):
            last = start + end - first
            slots = self._slots(rows.tables[row], last).to(qkv.device)
            self._write(0, slots[start:], k[first:end])
            self._write(1, slots[start:], v[first:end])
            seen = max(0, start + 1 - window) if window else 0
            keys, values = self._read(0, slots[seen:]), self._read(1, slots[seen:])
            at = torch.arange(seen, last, device=qkv.device)
            new = at[start - seen :, None]
            mask = at <= new if window is None else (at <= new) & (at > new - window)
            query, keys, values = (t.transpose(0, 1)[None] for t in (q[first:end], keys, values))
            seen_by = reference.attention(query, keys, values, mask[None, None])
            out[first:end] = seen_by[0].transpose(0, 1)
        return out

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        if not pairs:
            return
        source, target = self._inside(pairs)
        for stored, planes in zip(self._stored, self._planes, strict=True):
            stored[target] = stored[source]
            planes[:, target] = planes[:, source]

    def _inside(self, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Slots of the blocks copied from, and of those copied to."""
        size = self.shape.block_size
        source, target = (
            (torch.tensor(side)[:, None] * size + torch.arange(size)).flatten()
            for side in zip(*pairs, strict=True)
        )
        return source, target

    def _turn_keys(self, k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return reference.apply_rotary(k[None], cos[None], sin[None])[0]

    def _slots(self, table: Tensor, length: int) -> Tensor:
        size = self.shape.block_size
        at = torch.arange(length)
        return table.long()[at // size] * size + at % size

    def _write(self, which: int, slots: Tensor, x: Tensor) -> None:
        """x: [n, kv_heads, d]."""
        if self.shape.format == "float":
            self._stored[which][slots] = x
            return
        if which == 0 and self._key_step is not None:
            x = x.float() / self._key_step
        codes, scale, minimum = quantize_kv(x, self.shape.format)
        self._stored[which][slots] = codes
        self._planes[which][0, slots], self._planes[which][1, slots] = scale, minimum

    def _read(self, which: int, slots: Tensor) -> Tensor:
        stored: Tensor = self._stored[which][slots]
        if self.shape.format == "float":
            return stored
        scale, minimum = self._planes[which][:, slots]
        values: Tensor = scale * stored.float() + minimum
        if which == 0 and self._key_step is not None:
            values = values * self._key_step
        return values.to(self.shape.dtype)


def formed(shape: PagedShape, keys: KeyForm | None) -> KeyForm | None:
    """The form by which a layer keeps keys, plain if none is given; None of formats that have none.

    Raises UnsupportedError for a form that does not suit the shape.
    """
    if shape.format not in FORMED:
        if keys is not None:
            raise UnsupportedError(f"Keys in {shape.format} take no form.", f"Choose of {', '.join(FORMED)}.")
        return None
    form = keys or KeyForm.plain(shape.kv_heads, shape.head_dim)
    form.check(shape.kv_heads, shape.head_dim, centered=shape.format == "int4")
    return form


def _int32(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    return torch.from_numpy(np.array(values, np.int32))  # a third of the time of torch.tensor


def _zeros(size: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """On a CPU memory that the system gives, zero, as it is written; torch would fill it now."""
    nbytes = math.prod(size) * dtype.itemsize
    if not nbytes or torch.device(device).type != "cpu":
        return torch.zeros(*size, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(nbytes, np.uint8)).view(dtype).view(*size)


def quantize_kv(x: Tensor, format: KVFormat) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, heads, d] as scale * codes + minimum: uint8 [n, heads, d], two times float32 [n, heads, 1].

    int8: scale = max|x| / 127, codes = round(x / scale) + 128. int8-affine: scale = (max - min) / 255, codes
    = round((x - min) / scale). Rounding is to nearest, halves to even; of zeros the scale is 0 and codes are
    those of 0. int8-original: as DenseCache's OriginalInt8Cache, over all n at once, computed in x's dtype.
    """
    if format == "int8-original":
        low, high = x.amin((0, 2), keepdim=True), x.amax((0, 2), keepdim=True)
        scale = (high - low) / 255
        zero = 0 - low / scale
        codes = (x / scale + zero).clamp(0, 255).to(torch.uint8)
        scale = scale.float().expand(x.shape[0], -1, 1)
        return codes, scale, -scale * zero.float()
    x = x.float()
    if format == "int8":
        scale = x.abs().amax(-1, keepdim=True) / 127
        codes = _divide(x, scale).round() + 128
        return codes.clamp(1, 255).to(torch.uint8), scale, -128 * scale
    low = x.amin(-1, keepdim=True)
    scale = (x.amax(-1, keepdim=True) - low) / 255
    return _divide(x - low, scale).round().clamp(0, 255).to(torch.uint8), scale, low


def _divide(x: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale > 0, x / scale, torch.zeros_like(x))
