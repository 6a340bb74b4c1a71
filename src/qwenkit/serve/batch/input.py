"""Reading a batch file: OpenAI's JSON Lines, one request a line, one line at a time.

Knows nothing of answers. What a line says wrong is found here; what its body says wrong, the routes find.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from qwenkit.core import RequestError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
"""Where a line may send its body."""

_FIELDS = ("custom_id", "method", "url", "body")
_LONGEST_ID = 512  # characters
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class BatchLine:
    """A request; `number` counts lines from 1."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True)
class BadLine:
    """A line that is no request, and why; `custom_id` if so much could be read, `param`: the wrong field."""

    number: int
    custom_id: str | None
    code: str
    message: str
    param: str | None = None


class _BadError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        self.code, self.message, self.param = code, message, param


def digest(custom_id: str) -> bytes:
    """What is kept of an id to know it again: 16 bytes, however long it is."""
    return blake2b(custom_id.encode(), digest_size=16).digest()


def count_lines(path: Path) -> int:
    """Lines with something in them, roughly: newlines, and one more. Raises RequestError."""
    with _open(path) as file:
        count, last = 0, b"\n"
        while part := file.read(1 << 20):
            count += part.count(b"\n")
            last = part[-1:]
    return count + (last != b"\n")


def read_lines(path: Path, longest: int) -> Iterator[BatchLine | BadLine]:
    """Every line of the file but empty ones. longest: bytes a line may have; a longer one is bad, and never
    in memory. Raises RequestError for a file that cannot be read."""
    seen: set[bytes] = set()
    with _open(path) as file:
        number = 0
        while raw := file.readline(longest + 1):
            number += 1
            whole = len(raw) <= longest or raw.endswith(b"\n")
            while not whole and (more := file.readline(1 << 20)):
                whole = more.endswith(b"\n")
            if raw.strip():
                yield _line(number, raw, longest, seen)


def check_readable(path: Path) -> None:
    """Raises RequestError unless the file can be read."""
    _open(path).close()


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise RequestError(f"Cannot read {path}: {error.strerror}.", "Give a batch file.") from error


def _line(number: int, raw: bytes, longest: int, seen: set[bytes]) -> BatchLine | BadLine:
    custom_id = None
    try:
        if len(raw.rstrip(b"\r\n")) > longest:
            raise _BadError("line_too_long", f"It has more than {longest} bytes.")
        value = _object(raw)
        custom_id = _custom_id(value)
        if unknown := [name for name in value if name not in _FIELDS]:
            raise _BadError("unknown_parameter", f"It has an unknown field {unknown[0][:100]!r}.", unknown[0])
        if value.get("method") != "POST":
            raise _BadError("invalid_value", "Its method is not POST.", "method")
        url, body = value.get("url"), value.get("body")
        if not isinstance(url, str) or url not in URLS:
            raise _BadError("invalid_url", f"Its url is none of {', '.join(URLS)}.", "url")
        if not isinstance(body, dict):
            raise _BadError("invalid_value", "Its body is no JSON object.", "body")
        if body.get("stream"):
            raise _BadError("unsupported_parameter", "A batch has no streams.", "body.stream")
        if (own := digest(custom_id)) in seen:
            raise _BadError("duplicate_custom_id", "An earlier line has the same custom_id.", "custom_id")
        seen.add(own)
        return BatchLine(number, custom_id, url, body)
    except _BadError as error:
        return BadLine(number, custom_id, error.code, f"Line {number}: {error.message}", error.param)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        what = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        )
        raise _BadError("invalid_json_line", f"It is not JSON: {what:.200}.") from error
    if not isinstance(value, dict):
        raise _BadError("invalid_json_line", "It is no JSON object.")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _custom_id(value: dict[str, Any]) -> str:
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _LONGEST_ID or _HALF.search(custom_id):
        raise _BadError(
            "invalid_custom_id",
            f"Its custom_id is not a string of 1 to {_LONGEST_ID} characters.",
            "custom_id",
        )
    return custom_id
