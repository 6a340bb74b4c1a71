"""The header of a GGUF file: metadata and the list of tensors, every byte of it distrusted.

Written for speed on vocabularies of 150 000 strings and for files that lie about their counts: no count
is believed before the file is known to be long enough for it. Does not know what the metadata means.

Format (version 2 and 3, little endian): magic, version, tensor count, metadata count; then the metadata as
key, type, value; then per tensor its name, dimensions (fastest first), type and offset into the data.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from qwenkit.checkpoint.mapped_file import MappedFile
from qwenkit.checkpoint.verify import DOWNLOAD_AGAIN, check_file
from qwenkit.core import CheckpointError, UnsupportedError

BLOCKS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
"""Tensor type -> name, weights in a block, bytes of a block, for the types that can be read."""

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_MOST_ELEMENTS = 4_000_000  # over all arrays; a Qwen vocabulary with its merges has 455 000
_LONGEST_KEY = 65535  # bytes; the limit the format itself sets
_MOST_DIMENSIONS = 4

Value: TypeAlias = Any


@dataclass(frozen=True)
class GGUFTensor:
    """shape in torch order (slowest dimension first); start and nbytes locate it in the file."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    start: int
    nbytes: int


class GGUFHeader:
    """`get` gives metadata: number, bool, str, or list (arrays decoded when asked for); tensors: in order.

    Raises CheckpointError for a corrupt or truncated file, UnsupportedError for versions and tensor types
    that are not read.
    """

    def __init__(self, path: Path) -> None:
        size = check_file(path)
        cursor = _Cursor(path, size)
        if cursor.take(4) != b"GGUF":
            raise CheckpointError(
                f"{path} is not a GGUF file.", "Give a file that begins with the bytes GGUF."
            )
        version = cursor.number("<I")
        if version not in (2, 3):
            raise UnsupportedError(
                f"{path}: GGUF version {version if version < 2**16 else 'of big-endian byte order'}.",
                "Versions 2 and 3, little endian, are read; convert the file with llama.cpp's tools.",
            )
        tensor_count, value_count = cursor.count(24), cursor.count(13)
        self._path = path
        self._values: dict[str, Value | _Array] = {}
        for _ in range(value_count):
            key = cursor.string(_LONGEST_KEY)
            if key in self._values:
                raise cursor.corrupt(f"metadata names {key!r} twice")
            self._values[key] = cursor.value(key)
        self.tensors = list(self._read_tensors(cursor, tensor_count, size))

    def get(self, key: str, default: Value = None) -> Value:
        """Metadata value of `key`; arrays come as lists."""
        value = self._values.get(key, default)
        if isinstance(value, _Array):
            value = self._values[key] = value.decode()
        return value

    def keys(self) -> list[str]:
        return list(self._values)

    def strings(self, key: str) -> Sequence[str]:
        """An array of strings. Raises CheckpointError if the key is absent or something else."""
        value = self.get(key)
        if not isinstance(value, list) or (value and not isinstance(value[0], str)):
            raise CheckpointError(
                f"{self._path}: metadata lacks the list of strings {key!r}.", DOWNLOAD_AGAIN
            )
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number. Raises CheckpointError if it is absent without default, or of another type."""
        value = self.get(key, default)
        if type(value) is not int:
            raise CheckpointError(
                f"{self._path}: metadata {key!r} is {_shown(value)}, not a whole number.", DOWNLOAD_AGAIN
            )
        return value

    def text(self, key: str, default: str = "") -> str:
        """A string, or `default` where the key is absent. Raises CheckpointError for another type."""
        value = self.get(key, default)
        if not isinstance(value, str):
            raise CheckpointError(
                f"{self._path}: metadata {key!r} is {_shown(value)}, not text.", DOWNLOAD_AGAIN
            )
        return value

    def _read_tensors(self, cursor: _Cursor, count: int, size: int) -> Iterator[GGUFTensor]:
        alignment = self.integer("general.alignment", 32)
        if not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise cursor.corrupt(f"general.alignment is {alignment}")
        raw = []
        for _ in range(count):
            name = cursor.string(_LONGEST_KEY)
            dimensions = cursor.number("<I")
            if not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise cursor.corrupt(f"tensor {name!r} has {dimensions} dimensions")
            shape = tuple(reversed([cursor.number("<Q") for _ in range(dimensions)]))
            raw.append((name, shape, cursor.number("<I"), cursor.number("<Q")))
        data = -(-cursor.at // alignment) * alignment
        seen: set[str] = set()
        for name, shape, kind, offset in raw:
            if kind not in BLOCKS:
                raise UnsupportedError(
                    f"{self._path}: tensor {name!r} has type {_type_name(kind)}.",
                    f"Readable types: {', '.join(block[0] for block in BLOCKS.values())}.",
                )
            type_name, weights, width = BLOCKS[kind]
            if name in seen:
                raise cursor.corrupt(f"tensor {name!r} is there twice")
            seen.add(name)
            if min(shape) < 1 or math.prod(shape) > 2**48 or shape[-1] % weights:
                raise cursor.corrupt(f"tensor {name!r} of type {type_name} has shape {list(shape)}")
            nbytes = math.prod(shape) // weights * width
            if offset % alignment or data + offset + nbytes > size:
                raise cursor.corrupt(
                    f"truncated: tensor {name!r} ends at byte {data + offset + nbytes}, the file at {size}"
                )
            yield GGUFTensor(name, shape, type_name, data + offset, nbytes)


@dataclass
class _Array:
    """An array not decoded yet: where its elements lie."""

    cursor: _Cursor
    start: int
    count: int
    format: str | None  # None for strings

    def decode(self) -> list[Any]:
        self.cursor.at = self.start
        if self.format is None:
            return self.cursor.strings(self.count)
        raw = self.cursor.take(self.count * struct.calcsize(self.format))
        return list(struct.unpack(f"<{self.count}{self.format[1:]}", raw))


class _Cursor:
    """Reads forward through the file and never past its end."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.at = 0
        self._elements = 0
        self._buffer = MappedFile(path).view(0, size).numpy().data

    def corrupt(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}.", DOWNLOAD_AGAIN)

    def _reach(self, length: int) -> int:
        """Step over `length` bytes; returns where they begin."""
        start = self.at
        if length > self.size - start:
            raise self.corrupt(
                f"its header wants {length} bytes at {start}, but the file ends at {self.size}"
            )
        self.at = start + length
        return start

    def take(self, length: int) -> bytes:
        start = self._reach(length)
        return bytes(self._buffer[start : start + length])

    def number(self, form: str) -> Any:
        return struct.unpack_from(form, self._buffer, self._reach(struct.calcsize(form)))[0]

    def count(self, least: int) -> int:
        """A count of things that take at least `least` bytes each."""
        count: int = self.number("<Q")
        if count > (self.size - self.at) // least:
            raise self.corrupt(f"its header counts {count} entries, more than {self.size} bytes can hold")
        return count

    def string(self, longest: int = 2**31) -> str:
        length = self.number("<Q")
        if length > longest:
            raise self.corrupt(f"its header has a string of {length} bytes at {self.at}")
        start = self._reach(length)
        # Vocabularies hold bytes as printable stand-ins, so real files are always valid UTF-8.
        try:
            return str(self._buffer[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise self.corrupt(f"its header has text at {start} that is not UTF-8") from None

    def value(self, key: str) -> Value:
        kind = self.number("<I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(key)
        raise self.corrupt(f"metadata {key!r} has unknown type {kind}")

    def _array(self, key: str) -> _Array:
        kind = self.number("<I")
        form = _SCALARS.get(kind)
        if form is None and kind != _STRING:
            raise self.corrupt(f"metadata {key!r} is an array of type {kind}")
        count = self.count(struct.calcsize(form) if form else 8)
        self._elements += count
        if self._elements > _MOST_ELEMENTS:
            raise self.corrupt(f"its metadata has over {_MOST_ELEMENTS} array elements")
        found = _Array(self, self.at, count, form)
        if form:
            self._reach(count * struct.calcsize(form))
        else:
            for _ in self._string_spans(count):
                pass
        return found

    def _string_spans(self, count: int) -> Iterator[tuple[int, int]]:
        """Where `count` strings begin and end. The hot loop: one length read a string."""
        at, size = self.at, self.size
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = at + 8
            if start <= size:
                at = start + length_at(self._buffer, at)[0]
            if start > size or at > size:
                raise self.corrupt(f"its header has strings past the end of the file at {size}")
            yield start, at
        self.at = at

    def strings(self, count: int) -> list[str]:
        """`count` strings from here on."""
        buffer = self._buffer
        try:
            return [str(buffer[start:end], "utf-8") for start, end in self._string_spans(count)]
        except UnicodeDecodeError:
            raise self.corrupt("its metadata has text that is not UTF-8") from None


def _type_name(kind: int) -> str:
    """What llama.cpp calls a tensor type that is not in BLOCKS."""
    from gguf import GGMLQuantizationType

    return next((known.name for known in GGMLQuantizationType if known == kind), f"number {kind}")


def _shown(value: Value) -> str:
    text = repr(value)
    return text if len(text) < 80 else text[:80] + "..."


def plain_dtype(type_name: str) -> torch.dtype | None:
    """The torch dtype of a plain float type, None for block types."""
    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(type_name)
