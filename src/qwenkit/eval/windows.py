"""Texts as windows of tokens, each predicted from its own start."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenkit.core import RequestError
from qwenkit.text import Tokenizer
from qwenkit.text.chatml import encode_training
from qwenkit.text.conversations import conversation

_LEAST = 2  # tokens: of one alone nothing is predicted


@dataclass(frozen=True)
class Window:
    """Token ids that are scored together, and the file they came from."""

    source: str
    ids: tuple[int, ...]


def read_windows(
    paths: Sequence[Path], tokenizer: Tokenizer, *, length: int, limit: int | None = None
) -> list[Window]:
    """Windows of at most `length` tokens, at most `limit` of each file, in order.

    A .jsonl file has a record a line: {"text": ...}, or a conversation as {"messages": [{"role", "content"}]}
    or {"conversations": [{"from", "value"}]}, rendered as the model was trained on it. Every record begins a
    window; what exceeds one goes on in the next. Any other file is one text. What is left at the end of a
    text makes a window if it has two tokens or more.
    Raises RequestError for a file that cannot be read, is no UTF-8 or holds no window, naming file and line.
    """
    if length < _LEAST:
        raise RequestError(f"Windows of {length} tokens.", f"Give at least {_LEAST}.")
    windows = []
    for path in paths:
        found = []
        for ids in _texts(path, tokenizer):
            pieces = (ids[start : start + length] for start in range(0, len(ids), length))
            found += [Window(str(path), tuple(piece)) for piece in pieces if len(piece) >= _LEAST]
            if limit is not None and len(found) >= limit:
                break
        if not found:
            raise RequestError(f"{path} holds no text of {_LEAST} tokens.", "Give a longer text.")
        windows += found[:limit]
    return windows


def _texts(path: Path, tokenizer: Tokenizer) -> Iterator[list[int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path}: {error.strerror}.", "Give a text file.") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 (byte {error.start}).", "Convert it to UTF-8.") from error
    if path.suffix != ".jsonl":
        yield tokenizer.encode(text)
        return
    for number, line in enumerate(text.split("\n"), 1):  # other ends of lines may stand inside a string
        if line.strip():
            yield _record(line, f"{path}:{number}", tokenizer)


def _record(line: str, where: str, tokenizer: Tokenizer) -> list[int]:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else "too deeply nested"
        raise RequestError(f"{where}: no JSON ({what}).", "Every line is one JSON object.") from error
    text = record.get("text") if isinstance(record, dict) else None
    if isinstance(text, str):
        return tokenizer.encode(text)
    try:
        return encode_training(tokenizer, conversation(record, "the record"))[0]
    except RequestError as error:
        raise RequestError(
            f"{where}: neither a text nor a conversation ({error.problem.rstrip('.')}).", error.remedy
        ) from error
