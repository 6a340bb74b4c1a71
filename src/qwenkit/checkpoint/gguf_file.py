"""The tensors of a GGUF file, turned back into floats a few rows at a time (block formats: llama.cpp's)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.checkpoint.gguf_header import GGUFHeader, GGUFTensor, plain_dtype
from qwenkit.checkpoint.mapped_file import MappedFile
from qwenkit.checkpoint.shards import Shards
from qwenkit.checkpoint.tensor_source import TensorEntry, TensorSource
from qwenkit.checkpoint.verify import check_finite
from qwenkit.core import CheckpointError, UnsupportedError
from qwenkit.quant import AffineCodes, Codes, NestedCodes
from qwenkit.quant.gguf_blocks import AFFINE, codes_from_blocks, nearest_codes
from qwenkit.quant.k_quants import NESTED, codes_from_k_blocks

_CHUNK = 2**20  # weights; small enough that the library's temporaries stay in the processor's cache
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf")


class GGUFFile(TensorSource):
    """Block-quantized tensors come out in float32 unless `read` is told otherwise; plain ones stay mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = GGUFHeader(path)
        self._file = MappedFile(path)
        self._tensors: dict[str, GGUFTensor] = {tensor.name: tensor for tensor in self.header.tensors}
        self._entries = {
            t.name: TensorEntry(t.name, t.shape, t.type_name, t.nbytes, path) for t in self._tensors.values()
        }

    def entries(self) -> Mapping[str, TensorEntry]:
        return self._entries

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        self.entry(name)
        stored = self._tensors[name]
        plain = plain_dtype(stored.type_name)
        if plain is None:
            return self._dequantize(stored, torch.float32 if dtype is None else dtype)
        tensor = self._file.view(stored.start, stored.start + stored.nbytes, plain).view(stored.shape)
        check_finite(tensor, name, self.path, dtype)
        if dtype is None or dtype == plain:
            return tensor
        cast = tensor.to(dtype)
        self.release(name)
        return cast

    def read_codes(self, name: str) -> Codes | None:
        self.entry(name)
        stored = self._tensors[name]
        if plain_dtype(stored.type_name) is not None or len(stored.shape) != 2:
            return None
        rows, columns = stored.shape
        packed = self._file.view(stored.start, stored.start + stored.nbytes).view(rows, -1)
        step = max(1, _CHUNK // columns)

        def affine(start: int) -> AffineCodes:
            blocks = packed[start : start + step]
            if stored.type_name in AFFINE:
                return codes_from_blocks(blocks, stored.type_name)
            return nearest_codes(self._floats(stored, blocks))

        def nested(start: int) -> NestedCodes:
            return codes_from_k_blocks(packed[start : start + step], stored.type_name)

        starts = range(0, rows, step)
        try:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
                if stored.type_name in NESTED:
                    return NestedCodes.stack(list(threads.map(nested, starts)))
                return AffineCodes.stack(list(threads.map(affine, starts)))
        except UnsupportedError:
            return None  # scales that float16 cannot hold, or NaN: reading as floats says which

    def release(self, name: str) -> None:
        stored = self._tensors[name]
        self._file.release(stored.start, stored.start + stored.nbytes)

    def _dequantize(self, stored: GGUFTensor, dtype: torch.dtype) -> Tensor:
        """Row chunks in as many threads as there are cores; beside the result only they take memory."""
        out = torch.empty(stored.shape, dtype=dtype)
        flat = out.view(-1, stored.shape[-1])
        packed = self._file.view(stored.start, stored.start + stored.nbytes).view(flat.shape[0], -1)
        step = max(1, _CHUNK // flat.shape[1])

        def fill(start: int) -> None:
            flat[start : start + step] = self._floats(stored, packed[start : start + step], dtype)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            for _ in threads.map(fill, range(0, flat.shape[0], step)):
                pass
        self.release(stored.name)
        return out

    def _floats(self, stored: GGUFTensor, blocks: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Blocks uint8 [n, bytes of a row] as float32 [n, columns], checked to be finite, also in `dtype`."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        rows = torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[stored.type_name]))
        check_finite(rows, stored.name, self.path, dtype)
        return rows


def open_gguf(path: Path) -> tuple[GGUFHeader, TensorSource]:
    """The header of the file (of the first one of a split set) and all its tensors.

    Raises CheckpointError when parts of a split set are missing, and as GGUFHeader does.
    """
    first = GGUFFile(path)
    count = first.header.integer("split.count", 1)
    if count <= 1:
        return first.header, first
    match = _SPLIT.fullmatch(path.name)
    if match is None or int(match["total"]) != count or first.header.integer("split.no", 0) != 0:
        raise CheckpointError(
            f"{path} is one part of a model split in {count}.",
            "Give the first part, named like model-00001-of-0000N.gguf, with the others beside it.",
        )
    others = [path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(2, count + 1)]
    missing = [other.name for other in others if not other.exists()]
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} of {count} parts: {', '.join(missing[:5])}.",
            "Download them into the same folder.",
        )
    return first.header, Shards([first, *(GGUFFile(other) for other in others)])
