"""Tensors in one file of our own: written as a stream, mapped back at the speed of memory, checked.

Layout: the mark; tensors on 64-byte boundaries, those that stay mapped first; a JSON header; its length in
8 bytes; the mark. The header comes last, so a stream that broke off has none. It carries, for every 4 MiB
before it, the sum of the 64-bit words: damage is seen while reading, at no cost beyond memory's.

Weights are read a third faster from huge pages. File systems that keep files in such pages (ext4 and xfs of
current Linux) let the file be mapped as it is; elsewhere its bytes are copied into memory that has them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
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
        self._file = path.open("wb", buffering=0)
        self._at = 0
        # Written piece by piece, for a file system gives huge pages to what comes in whole ones.
        self._piece = np.empty(_PIECE, np.uint8)
        self._sums: list[int] = []
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
        sums = self._sums + _sums(self._piece[: self._at % _PIECE])
        header = {"about": dict(about), "tensors": self._tensors, "resident": resident, "sums": sums}
        text = json.dumps(header, separators=(",", ":")).encode()
        self._write(text + len(text).to_bytes(8, "little") + _MARK)
        self._flush(self._at % _PIECE)
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
            at = self._at % _PIECE
            part = view[: _PIECE - at]
            self._piece[at : at + len(part)] = np.frombuffer(part, np.uint8)
            self._at += len(part)
            view = view[len(part) :]
            if self._at % _PIECE == 0:
                self._sums.extend(_sums(self._piece))
                self._flush(_PIECE)

    def _flush(self, count: int) -> None:
        view = self._piece[:count].data
        while view:
            view = view[self._file.write(view) :]


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
        whole = self._end % _LINE == 0 and len(self._sums) == -(-self._end // _PIECE)
        if not whole or not 0 <= self._resident <= self._end:
            raise self._broken("its header does not fit its size")

    def read(self, idle: Callable[[], object] = lambda: None) -> dict[str, Tensor]:
        """All tensors, as views of the mapped file; all but the mapped ones on huge pages if possible.

        idle: called when only the memory is at work.
        """
        before = _file_bytes_on_huge_pages()
        file = MappedFile(self.path, huge=True)
        whole = file.view(0, self._end)
        if _sums(whole.numpy(), idle) != self._sums:
            raise self._broken("its bytes are not those that were written")
        resident = whole[self._resident :]
        if _file_bytes_on_huge_pages() - before < 0.9 * len(resident):
            resident = native.huge(max(1, len(resident)))[: len(resident)].copy_(resident)
            file.release(self._resident, self._end)
        tensors = {}
        for name, (dtype, shape, start, end) in self._tensors.items():
            if start < self._resident:
                flat = whole[start:end]
            else:
                flat = resident[start - self._resident : end - self._resident]
            tensors[name] = flat.view(dtype).view(shape)
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


def _sums(data: NDArray[np.uint8], idle: Callable[[], object] = lambda: None) -> list[int]:
    """The sum of the 64-bit words of every piece, added up in threads while `idle` has Python for itself.

    One call of numpy a thread: between two it would have to wait for Python.
    """
    whole = len(data) // _PIECE
    pieces = data[: whole * _PIECE].view(np.uint64).reshape(whole, _PIECE // 8)
    rest = data[whole * _PIECE :].view(np.uint64)
    count = min(8, os.cpu_count() or 1, max(1, whole))
    with ThreadPoolExecutor(count) as threads:
        parts = threads.map(lambda part: np.add.reduce(part, axis=1), np.array_split(pieces, count))
        idle()
        sums = [int(value) for part in parts for value in part]
    return sums + [int(np.add.reduce(rest))] * (len(rest) > 0)


def _file_bytes_on_huge_pages() -> int:
    """How much of the files that this process has touched lies on huge pages; 0 where no system says so."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^FilePmdMapped: *(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) << 10 if found else 0
