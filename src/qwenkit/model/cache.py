"""Where keys and values of earlier tokens are kept, for callers that run whole batches in step."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class KVCache(ABC):
    """Grows by the tokens of each forward pass; the model calls `update` once a layer.

    Contract: within one pass every layer appends the same number of tokens, layer 0 first; `length`
    counts tokens appended to the last layer. Keys arrive already rotated.
    """

    @property
    @abstractmethod
    def length(self) -> int:
        """Slots filled, left padding included."""

    @abstractmethod
    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v [b, kv_heads, s, d]; return all keys and values [b, kv_heads, length + s, d]."""

    @abstractmethod
    def nbytes(self) -> int:
        """Memory held."""


class DenseCache(KVCache):
    """One tensor a layer in the dtype of the keys, grown by doubling so that appending stays cheap."""

    def __init__(self, num_layers: int, capacity: int = 256) -> None:
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._filled = [0] * num_layers
        self._capacity = capacity

    @property
    def length(self) -> int:
        return self._filled[-1]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start = self._filled[layer]
        end = start + k.shape[2]
        self._keys[layer] = keys = self._with_room(self._keys[layer], k, start, end)
        self._values[layer] = values = self._with_room(self._values[layer], v, start, end)
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        self._filled[layer] = end
        return keys[:, :, :end], values[:, :, :end]

    def _with_room(self, held: Tensor | None, like: Tensor, start: int, end: int) -> Tensor:
        if held is not None and held.shape[2] >= end:
            return held
        room = max(end, self._capacity, 2 * start)
        grown = like.new_empty(like.shape[0], like.shape[1], room, like.shape[3])
        if held is not None:
            grown[:, :, :start] = held[:, :, :start]
        return grown

    def select(self, rows: Tensor) -> None:
        """Keep only these rows of the batch, in this order (repeats allowed); rows: int64 [b']."""
        self._keys = [k if k is None else k.index_select(0, rows) for k in self._keys]
        self._values = [v if v is None else v.index_select(0, rows) for v in self._values]

    def trim(self, length: int) -> None:
        """Forget every slot from `length` on."""
        self._filled = [min(length, filled) for filled in self._filled]

    def nbytes(self) -> int:
        held = [t for t in (*self._keys, *self._values) if t is not None]
        return sum(t.numel() * t.element_size() for t in held)


class OriginalInt8Cache(KVCache):
    """The 2023 scheme (reference: model section 7): one scale a head and call, truncating cast.

    Kept for parity with outputs made under `use_cache_quantization`; the whole prompt shares a scale,
    so a per-token scheme is more exact at the same size.
    """

    def __init__(self, num_layers: int) -> None:
        self._layers: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(2 * num_layers)]

    @property
    def length(self) -> int:
        return sum(codes.shape[2] for codes, _, _ in self._layers[-1])

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self._layers[2 * layer].append(self.quantize(k))
        self._layers[2 * layer + 1].append(self.quantize(v))
        return self._read(2 * layer), self._read(2 * layer + 1)

    def _read(self, slot: int) -> Tensor:
        parts = [scale * (codes.to(scale.dtype) - zero) for codes, scale, zero in self._layers[slot]]
        return torch.cat(parts, dim=2)

    @staticmethod
    def quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [b, heads, s, d] -> (codes uint8 of x's shape, scale and zero [b, heads, 1, 1] in x's dtype)."""
        low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
        scale = (high - low) / 255
        zero = 0 - low / scale
        return (x / scale + zero).clamp(0, 255).to(torch.uint8), scale, zero

    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self._layers for part in layer for t in part)
