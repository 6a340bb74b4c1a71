"""`use_cache_quantization`: the original's int8 keys and values inside a transformers cache.

The arithmetic is `qwenkit.model.OriginalInt8Cache`; here it is only given the verbs transformers needs
(reorder, crop, select). Kept for outputs made under that switch; see there for what is better.
"""

from __future__ import annotations

# mypy: allow-untyped-calls
# transformers annotates only part of what it asks to be called and overridden.
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from qwenkit.core import UnsupportedError
from qwenkit.model import OriginalInt8Cache


def keep_as_int8(cache: Cache, num_layers: int) -> None:
    """Make an empty DynamicCache store int8; a cache that already does is left alone.

    Raises UnsupportedError for other caches and for ones that already hold unquantized keys.
    """
    layers = getattr(cache, "layers", None)
    if layers and all(isinstance(layer, Int8Layer) for layer in layers):
        return
    plain = layers is not None and all(type(layer) is DynamicLayer for layer in layers)
    if not plain or cache.get_seq_length() or getattr(cache, "offloading", False):
        raise UnsupportedError(
            f"use_cache_quantization with a {type(cache).__name__} that is not an empty DynamicCache.",
            "Leave past_key_values and cache_implementation out, or use_cache_quantization off.",
        )
    cache.layers = [Int8Layer() for _ in range(num_layers)]


class Int8Layer(DynamicLayer):
    """One layer; codes uint8 [b, heads, K, d], scale and zero [b, heads, K, 1] in the dtype of the keys."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.key_scales: tuple[Tensor, Tensor] | None = None
        self.value_scales: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.keys, self.key_scales, keys = _append(self.keys, self.key_scales, key_states)
        self.values, self.value_scales, values = _append(self.values, self.value_scales, value_states)
        self.is_initialized = True
        self.dtype, self.device = key_states.dtype, key_states.device
        return keys, values

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else int(self.keys.shape[-2])

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def crop(self, *args: Any, **kwargs: Any) -> None:
        before = self.get_seq_length()
        super().crop(*args, **kwargs)
        if self.get_seq_length() != before:
            self._scales(lambda t: t[..., : self.get_seq_length(), :])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._scales(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._scales(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._scales(lambda t: t[indices, ...])

    def reset(self) -> None:
        self.__init__()  # type: ignore[misc]

    def _scales(self, change: Any) -> None:
        if self.key_scales is not None and self.value_scales is not None:
            self.key_scales = change(self.key_scales[0]), change(self.key_scales[1])
            self.value_scales = change(self.value_scales[0]), change(self.value_scales[1])


def _append(
    codes: Tensor | None, scales: tuple[Tensor, Tensor] | None, new: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Quantize `new` and append it; returns (codes, (scale, zero), everything dequantized)."""
    more, scale, zero = OriginalInt8Cache.quantize(new)
    scale, zero = (t.expand(-1, -1, new.shape[-2], -1) for t in (scale, zero))
    if codes is not None and scales is not None:
        more = torch.cat((codes, more), dim=-2)
        scale, zero = torch.cat((scales[0], scale), dim=-2), torch.cat((scales[1], zero), dim=-2)
    return more, (scale, zero), scale * (more.to(scale.dtype) - zero)
