"""Conversations in files: the fine-tuning JSON of the original, and OpenAI's messages, as JSON or JSON lines.

A record is {"conversations": [{"from": "user", "value": ...}, ...]} (reference: finetune section 1) or
{"messages": [{"role": "user", "content": ...}, ...]}; a file is a JSON list of records, or records one after
another. Every error names the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwenkit.core import Message, RequestError
from qwenkit.core.messages import Role

_SHAPES = {"conversations": ("from", "value"), "messages": ("role", "content")}
_ROLES: dict[Any, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}
_SPACE = " \t\r\n"


def read_conversations(path: Path) -> Iterator[tuple[list[Message], str]]:
    """Each conversation, and where it is ("file:line"), in order.

    Raises RequestError for text that is no JSON in UTF-8, and for a record of another shape: nothing is
    skipped in silence.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not UTF-8 (byte {error.start}).", "Save it as UTF-8; it must be JSON."
        ) from error
    for value, line in _values(text, path):
        place = f"{path}:{line}"
        yield conversation(value, place), place


def _values(text: str, path: Path) -> Iterator[tuple[Any, int]]:
    """The elements of a JSON list, or JSON values one after another, each with its line."""
    decoder = json.JSONDecoder()
    at = _skip(text, 0)
    listed = text.startswith("[", at)
    at = _skip(text, at + 1) if listed else at
    line, counted = 1, 0
    first = True
    while at < len(text) and not (listed and text[at] == "]"):
        line += text.count("\n", counted, at)
        counted = at
        if listed and not first:
            if text[at] != ",":
                raise RequestError(f"{path}:{line}: a comma is missing.", "Correct the JSON.")
            at = _skip(text, at + 1)
            line += text.count("\n", counted, at)
            counted = at
        first = False
        try:
            value, at = decoder.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            where = error.lineno if isinstance(error, json.JSONDecodeError) else line
            what = error.msg if isinstance(error, json.JSONDecodeError) else "too deeply nested"
            raise RequestError(f"{path}:{where}: not valid JSON ({what}).", "Correct the line.") from error
        yield value, line
        at = _skip(text, at)
    if listed and at >= len(text):
        raise RequestError(f"{path} ends before its list does.", "The file is truncated; write it again.")
    if listed and _skip(text, at + 1) < len(text):
        line += text.count("\n", counted, at)
        raise RequestError(f"{path}:{line}: something follows the list.", "Keep one list in the file.")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def conversation(record: Any, place: str) -> list[Message]:
    """The turns of one record; `place` ("file:line") begins the RequestError for one of another shape."""
    kind = next((kind for kind in _SHAPES if isinstance(record, dict) and kind in record), None)
    if kind is None:
        raise RequestError(
            f"{place}: the record has neither 'conversations' nor 'messages'.",
            'Write {"messages": [{"role": "user", "content": "..."}, ...]}.',
        )
    role_key, text_key = _SHAPES[kind]
    turns = record[kind]
    if not isinstance(turns, list) or not turns:
        raise RequestError(f"{place}: {kind!r} is not a list with turns in it.", "Remove or fill the record.")
    messages = []
    for number, turn in enumerate(turns, 1):
        role = turn.get(role_key) if isinstance(turn, dict) else None
        text = turn.get(text_key) if isinstance(turn, dict) else None
        if role not in _ROLES:
            raise RequestError(
                f"{place}: turn {number} has {role_key} {role!r}.", "Use system, user and assistant."
            )
        if not isinstance(text, str):
            raise RequestError(f"{place}: turn {number} has no text in {text_key!r}.", "It must be a string.")
        if role == "system" and number > 1:
            raise RequestError(f"{place}: turn {number} is a system prompt.", "Only the first may be one.")
        messages.append(Message(_ROLES[role], text))
    return messages
