"""One .safetensors file, mapped: its header checked byte for byte, its tensors read without a copy.

Format: 8 bytes little-endian header length, a JSON header, then the data that header describes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwenkit.checkpoint.mapped_file import MappedFile
from qwenkit.checkpoint.tensor_source import TensorEntry, TensorSource
from qwenkit.checkpoint.verify import DOWNLOAD_AGAIN, check_file, check_finite
from qwenkit.core import CheckpointError, UnsupportedError

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

_LARGEST_HEADER = 100 * 2**20  # bytes; the limit the format itself sets


class SafetensorsFile(TensorSource):
    """Opens the file and checks its header; the data is mapped on the first read.

    Raises CheckpointError if the file is missing, truncated or corrupt.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: Mapping[str, str] = {}
        size = check_file(path)
        header, self._data_start = self._read_header(size)
        self._offsets: dict[str, tuple[int, int]] = {}
        self._entries = self._check_header(header, size - self._data_start)
        self._file = MappedFile(path)

    def entries(self) -> Mapping[str, TensorEntry]:
        return self._entries

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        entry = self.entry(name)
        stored = DTYPES.get(entry.dtype)
        if stored is None:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} has dtype {entry.dtype}.",
                f"Readable dtypes: {', '.join(DTYPES)}.",
            )
        # Early writers did not pad the header; the map copies what is not aligned.
        tensor = self._file.view(*self._offsets[name], stored).view(entry.shape)
        check_finite(tensor, name, self.path, dtype)
        if dtype is None or dtype == stored:
            return tensor
        cast = tensor.to(dtype)
        self.release(name)
        return cast

    def release(self, name: str) -> None:
        self._file.release(*self._offsets[name])

    def _corrupt(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}.", DOWNLOAD_AGAIN)

    def _read_header(self, size: int) -> tuple[dict[str, Any], int]:
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise self._corrupt(f"its header would take {length} bytes, but the file ends after {size}")
            if length > _LARGEST_HEADER:
                raise self._corrupt(f"its header of {length} bytes is over the limit of {_LARGEST_HEADER}")
            raw = file.read(length)
        try:
            header = json.loads(raw, object_pairs_hook=self._unique)
        except (ValueError, RecursionError) as error:
            raise self._corrupt(f"its header is not valid JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._corrupt("its header is not a JSON object")
        metadata = header.pop("__metadata__", {})
        if isinstance(metadata, dict):
            self.metadata = metadata
        return header, 8 + length

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise self._corrupt(f"its header names {twice!r} twice")
        return found

    def _check_header(self, header: dict[str, Any], data_size: int) -> dict[str, TensorEntry]:
        entries: dict[str, TensorEntry] = {}
        for name, value in header.items():
            entries[name], self._offsets[name] = self._check_entry(name, value)
        filled = 0
        for name, (start, end) in sorted(self._offsets.items(), key=lambda item: item[1]):
            if start != filled:
                raise self._corrupt(f"tensor {name!r} starts at byte {start} of the data, not {filled}")
            filled = end
        if filled != data_size:
            state = "truncated" if filled > data_size else "corrupt"
            raise self._corrupt(f"{state}: its tensors take {filled} bytes, but it holds {data_size}")
        self._offsets = {
            name: (self._data_start + start, self._data_start + end)
            for name, (start, end) in self._offsets.items()
        }
        return entries

    def _check_entry(self, name: str, value: Any) -> tuple[TensorEntry, tuple[int, int]]:
        fields = value if isinstance(value, dict) else {}
        shape, offsets, dtype = fields.get("shape"), fields.get("data_offsets"), fields.get("dtype")
        if not (
            isinstance(dtype, str)
            and isinstance(shape, list)
            and isinstance(offsets, list)
            and len(offsets) == 2
            and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, *offsets))
        ):
            raise self._corrupt(f"tensor {name!r} has an invalid header entry")
        start, end = offsets
        stored = DTYPES.get(dtype)
        if stored is not None and end - start != math.prod(shape) * stored.itemsize:
            raise self._corrupt(f"tensor {name!r} of shape {shape} and dtype {dtype} has {end - start} bytes")
        if end < start:
            raise self._corrupt(f"tensor {name!r} ends before it starts")
        return TensorEntry(name, tuple(shape), dtype, end - start, self.path), (start, end)
