"""The tensors of a GGUF file of architecture "llama", as a qwen2 file of the same model would hold them.

Two things differ: llama.cpp reorders the rows of queries and keys for its own rotary operator, and the
architecture has no biases, where ours has a row of zeros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from qwenkit.checkpoint.tensor_source import TensorEntry, TensorSource
from qwenkit.model import ModelConfig
from qwenkit.quant import Codes

_PROJECTION = re.compile(r"(?P<stem>blk\.\d+\.attn_(?P<letter>[qkv]))\.(?P<kind>weight|bias)")


class LlamaTensors(TensorSource):
    """`stored` with queries and keys in the order of their channels, and zero biases where it has none."""

    def __init__(self, stored: TensorSource, config: ModelConfig) -> None:
        self._stored = stored
        self._heads = {"q": config.num_heads, "k": config.num_kv_heads}
        self._entries = dict(stored.entries())
        for name, entry in stored.entries().items():
            match = _PROJECTION.fullmatch(name)
            if match and match["kind"] == "weight":
                bias = f"{match['stem']}.bias"
                self._entries.setdefault(bias, TensorEntry(bias, entry.shape[:1], "F32", 0, entry.file))

    def entries(self) -> Mapping[str, TensorEntry]:
        return self._entries

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        if name not in self._stored.entries() and name in self._entries:
            return torch.zeros(self._entries[name].shape, dtype=dtype or torch.float32)
        tensor = self._stored.read(name, dtype)
        order = self._order(name)
        return tensor if order is None else tensor[order]

    def read_codes(self, name: str) -> Codes | None:
        codes, order = self._stored.read_codes(name), self._order(name)
        return codes if codes is None or order is None else codes.rows(order)

    def _order(self, name: str) -> Tensor | None:
        """The stored row that belongs in each place; None where rows are in their places."""
        match = _PROJECTION.fullmatch(name)
        if match is None or match["letter"] not in self._heads:
            return None
        # A head's channels came as (0, d/2, 1, d/2 + 1, ...): neighbours are turned together there.
        pairs = torch.arange(self._entries[name].shape[0]).reshape(self._heads[match["letter"]], -1, 2)
        return pairs.transpose(1, 2).flatten()

    def release(self, name: str) -> None:
        if name in self._stored.entries():
            self._stored.release(name)
