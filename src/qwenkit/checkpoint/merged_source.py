"""The stored tensors of a base with an adapter laid over them: the same names, other values where it acts.

A changed tensor is computed when it is read, in float32 from what is stored, and rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qwenkit.checkpoint.adapter_changes import Change
from qwenkit.checkpoint.empty_model import empty_model
from qwenkit.checkpoint.loading import PACKED, Loader
from qwenkit.checkpoint.safetensors_file import DTYPES
from qwenkit.checkpoint.tensor_source import TensorEntry, TensorSource
from qwenkit.core import CheckpointError, UnsupportedError
from qwenkit.quant import Codes


class MergedSource(TensorSource):
    """loader: that of the base, whose headers were checked; changes: of its canonical tensors.

    GPTQ layers appear dequantized, as float32 weights. untied: the output, which the base has no tensor for,
    is a tensor of its own that begins as the embedding. dtype: of changed tensors, by default that in which
    the base stores them. changed: of each changed tensor its changes.
    """

    def __init__(
        self,
        loader: Loader,
        changes: Mapping[str, Sequence[Change]],
        *,
        untied: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._base, self._dtype = loader, dtype
        self._entries = dict(loader.source.entries())
        self._origin: dict[str, str] = {}  # of an untied output, the embedding
        self._first_row: dict[str, int] = {}
        self._packed: dict[str, str] = {}  # a weight that is stored in parts -> their module
        self.changed: dict[str, list[Change]] = {}
        for canonical, module in loader.owners(empty_model(loader.config)):
            if loader.is_tied(canonical):
                self._place_output(untied)
            parts, shapes = loader.modules[canonical], dict(module.named_parameters(recurse=False))
            sizes, first = loader.rows(shapes["weight"].shape[0], len(parts)), 0
            for part, rows in zip(parts, sizes, strict=True):
                if loader.is_packed([part]):
                    self._unpack(part, (rows, shapes["weight"].shape[1]), keep_bias="bias" in shapes)
                for kind in shapes if untied or not loader.is_tied(canonical) else ():
                    acting = [c for c in changes.get(f"{canonical}.{kind}", ()) if _overlap(c, first, rows)]
                    if acting:
                        self._change(f"{part}.{kind}", first, acting)
                first += rows

    def _place_output(self, untied: bool) -> None:
        """Give an untied output its tensor, or take away the copy of a tied one, which does not change."""
        loader = self._base
        embedding = f"{loader.modules['transformer.wte'][0]}.weight"
        output = f"{loader.modules['lm_head'][0]}.weight"
        if output in self._entries:
            held = loader.source.read(embedding)
            loader.check_tied_copy(held, held.dtype, "cpu")
            del self._entries[output]
        if untied:
            self._entries[output] = replace(loader.source.entry(embedding), name=output)
            self._origin[output] = embedding

    def _unpack(self, part: str, shape: tuple[int, int], *, keep_bias: bool) -> None:
        file = self._entries[f"{part}.qweight"].file
        for kind in PACKED:
            self._entries.pop(f"{part}.{kind}", None)
        if not keep_bias:
            self._base.check_extra_bias([part])
            self._entries.pop(f"{part}.bias", None)
        name = f"{part}.weight"
        self._entries[name] = TensorEntry(name, shape, "F32", 4 * shape[0] * shape[1], file)
        self._packed[name] = part

    def _change(self, name: str, first: int, changes: list[Change]) -> None:
        entry = self._entries[name]
        dtype = self._dtype or DTYPES.get(entry.dtype, torch.float32)  # blocks of a GGUF are no dtype
        words = next(words for words, known in DTYPES.items() if known == dtype)
        nbytes = dtype.itemsize * torch.Size(entry.shape).numel()
        self._entries[name] = replace(entry, dtype=words, nbytes=nbytes)
        self.changed[name] = changes
        self._first_row[name] = first

    def entries(self) -> Mapping[str, TensorEntry]:
        return self._entries

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """As everywhere. Raises CheckpointError if the merged values are not finite, UnsupportedError if
        the dtype cannot hold them."""
        entry = self.entry(name)
        if name in self._packed:
            held = self._base.packed_part(self._packed[name]).dequantize(torch.float32)
        elif name in self.changed:
            held = self._base.source.read(self._origin.get(name, name), torch.float32)
        else:
            return self._base.source.read(self._origin.get(name, name), dtype)
        for change in self.changed.get(name, ()):
            held = self._apply(change, held, self._first_row[name])
        wanted = dtype or DTYPES[entry.dtype]
        result = held.to(wanted)
        if not bool(torch.isfinite(result).all()):
            _explain(name, held, wanted)
        return result

    @staticmethod
    def _apply(change: Change, held: Tensor, first: int) -> Tensor:
        start, end = max(change.first, first), min(change.first + change.rows, first + len(held))
        if (start, end) == (first, first + len(held)):
            return change.apply(held, start)
        result = held.clone()
        result[start - first : end - first] = change.apply(held[start - first : end - first], start)
        return result

    def read_codes(self, name: str) -> Codes | None:
        if name in self.changed or name in self._packed:
            return None
        return self._base.source.read_codes(self._origin.get(name, name))

    def release(self, name: str) -> None:
        if name in self._packed:
            for kind in PACKED:
                if f"{self._packed[name]}.{kind}" in self._base.source.entries():
                    self._base.source.release(f"{self._packed[name]}.{kind}")
        else:
            self._base.source.release(self._origin.get(name, name))


def _overlap(change: Change, first: int, rows: int) -> bool:
    return change.first < first + rows and first < change.first + change.rows


def _explain(name: str, held: Tensor, dtype: torch.dtype) -> None:
    if bool(torch.isfinite(held).all()):
        words = str(dtype).removeprefix("torch.")
        raise UnsupportedError(
            f"{name!r}, merged, has values that {words} cannot hold.", "Write bfloat16 or float32 (--dtype)."
        )
    raise CheckpointError(
        f"{name!r}, merged, contains NaN or infinity.", "The adapter does not fit, or its training diverged."
    )
