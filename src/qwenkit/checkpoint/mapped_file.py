"""A file mapped into memory, as bytes that torch can view. Knows no format."""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path

import torch
from torch import Tensor


class MappedFile:
    """Maps the whole file on first use; the map lives as long as any tensor that views it.

    huge: ask for huge pages, which only some file systems have.
    """

    def __init__(self, path: Path, *, huge: bool = False) -> None:
        self.path = path
        self._huge = huge
        self._map: mmap.mmap | None = None
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def view(self, start: int, end: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Bytes start...end as a flat tensor of `dtype`: the mapped memory, or a copy if not aligned."""
        if start == end:
            return torch.empty(0, dtype=dtype)
        if self._map is None:
            with self.path.open("rb") as file:
                # A private, writable map: torch wants writable memory, and no write ever reaches the file.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            if self._huge and hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # a hint: refused is fine
                    self._map.madvise(mmap.MADV_HUGEPAGE)
            self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        raw = self._bytes[start:end]
        if start % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype)

    def release(self, start: int, end: int) -> None:
        """Drop the pages inside start...end from this process; a later view maps them in again."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if self._map is not None and length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, first, length)
