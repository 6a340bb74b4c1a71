"""Tensors in one file of our own: written as a stream, read back whole at the speed of memory, checked.

Layout: the mark; tensors on 64-byte boundaries, those that stay mapped first; a JSON header; its length in
8 bytes; the mark. The header comes last, so a stream that broke off has none. It carries, for every 4 MiB
before it, the sum of the 64-bit words: damage is seen while reading, at no cost beyond memory's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwenkit.checkpoint.mapped_file import MappedFile
from qwenkit.core import CheckpointError
from qwenkit.kernels import native

_MARK = b"qwenkit packed 1"
_LINE = 64
_PIECE = 4 << 20
_TYPES = {
    "uint8": torch.uint8,
    "int32": torch.int32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


class PackedWriter:
    """Writes a new file; leaving the `with` block without `finish`, or by an error, leaves none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b", buffering=0)
        self._at = 0
        self._tensors: dict[str, dict[str, Any]] = {}
        self._resident = 0
        self._finished = False
        self._write(_MARK)

    def add(self, name: str, tensor: Tensor, *, mapped: bool = False) -> None:
        """Append a tensor. mapped: the reader maps it instead of reading it; such tensors come first."""
        if not mapped and self._resident == 0:
            self._pad(_PIECE)
            self._resident = self._at
        elif mapped and self._resident:
            raise ValueError(f"{name} is to stay mapped, but tensors to be read were written before it.")
        self._pad(_LINE)
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self._tensors[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "start": self._at}
        self._write(raw.numpy().data)

    def finish(self, about: Mapping[str, Any]) -> None:
        """Write the header, with what the caller wants to find again (JSON values)."""
        self._pad(_LINE)
        resident = self._resident or self._at
        sums = [0] * -(-self._at // _PIECE)
        _in_pieces(self._file.fileno(), 0, self._at, None, sums)
        header = {"about": dict(about), "tensors": self._tensors, "resident": resident, "sums": sums}
        text = json.dumps(header, separators=(",", ":")).encode()
        self._write(text + len(text).to_bytes(8, "little") + _MARK)
        self._finished = True

    def __enter__(self) -> PackedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self._finished:
            self._path.unlink(missing_ok=True)

    def _pad(self, boundary: int) -> None:
        self._write(bytes(-self._at % boundary))

    def _write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            written = self._file.write(view)
            self._at += written
            view = view[written:]


class PackedFile:
    """Opens a file of `PackedWriter`: the header is checked now, the data by `read`.

    Both raise CheckpointError for a file that is truncated, damaged or something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        tail = len(_MARK) + 8
        with path.open("rb") as file:
            mark = file.read(len(_MARK))
            file.seek(max(0, size - tail))
            end = file.read()
            length = int.from_bytes(end[:8], "little")
            if mark != _MARK or end[8:] != _MARK or length > size - tail - len(_MARK):
                raise self._broken("it is truncated or not a file of packed weights")
            self._end = size - tail - length
            file.seek(self._end)
            text = file.read(length)
        try:
            header = json.loads(text)
            self.about: dict[str, Any] = header["about"]
            self._resident = int(header["resident"])
            self._sums = [int(value) for value in header["sums"]]
            self._tensors = {name: self._checked(about) for name, about in header["tensors"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._broken(f"its header makes no sense ({error})") from error
        if len(self._sums) != -(-self._end // _PIECE) or not 0 <= self._resident <= self._end:
            raise self._broken("its header does not fit its size")

    def read(self) -> dict[str, Tensor]:
        """All tensors: the mapped ones as views of the file, the others in one buffer on huge pages."""
        buffer = native.huge(max(1, self._end - self._resident))
        with self.path.open("rb", buffering=0) as file:
            sums = [0] * len(self._sums)
            _in_pieces(file.fileno(), self._resident, self._end, buffer.numpy(), sums)
        if sums != self._sums:
            raise self._broken("its bytes are not those that were written")
        mapped = MappedFile(self.path)
        tensors = {}
        for name, (dtype, shape, start, end) in self._tensors.items():
            if start < self._resident:
                flat = mapped.view(start, end, dtype)
            else:
                flat = buffer[start - self._resident : end - self._resident].view(dtype)
            tensors[name] = flat.view(shape)
        return tensors

    def _checked(self, about: Mapping[str, Any]) -> tuple[torch.dtype, list[int], int, int]:
        dtype, shape, start = _TYPES[about["dtype"]], [int(n) for n in about["shape"]], int(about["start"])
        end = start + math.prod(shape) * dtype.itemsize
        crosses = start < self._resident < end
        if min(shape, default=0) < 0 or start < 0 or end > self._end or start % _LINE or crosses:
            raise ValueError("a tensor lies outside the file")
        return dtype, shape, start, end

    def _broken(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}.", "It will be made again; delete it if this repeats.")


def _in_pieces(
    handle: int, resident: int, end: int, buffer: NDArray[np.uint8] | None, sums: list[int]
) -> None:
    """Read the file up to `end` in threads and sum its pieces; from `resident` on they go to `buffer`."""

    def piece(number: int) -> None:
        start = number * _PIECE
        stop = min(start + _PIECE, end)
        if buffer is not None and start >= resident:
            part = buffer[start - resident : stop - resident]
        else:
            part = np.empty(stop - start, np.uint8)
        filled = 0
        while filled < len(part):
            got = os.preadv(handle, [part[filled:].data], start + filled)
            if got == 0:
                return  # shorter than it said: the sum will tell
            filled += got
        sums[number] = int(np.add.reduce(part.view(np.uint64)))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for _ in threads.map(piece, range(len(sums))):
            pass
