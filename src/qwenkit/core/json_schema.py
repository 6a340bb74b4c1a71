"""What can be said of a JSON schema by reading it: whether it is JSON, how deep, and where its references go.

Knows nothing of what keywords demand of a text; whoever enforces them decides which it knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from qwenkit.core.errors import RequestError

MOST_BYTES = 256 * 1024
"""Of a schema as JSON: it takes time to compile by size, and those of tools have a few KB."""

DEEPEST = 100
"""Levels of objects and arrays; what reads the JSON later stops at 128."""

MOST_REFERENCES = 500
"""`$ref`s: they are followed by recursion, and a token may take longer for each that applies to it."""

_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_DATA = ("const", "enum", "default", "examples", "example")
_IN_PLACE = ("not", "if", "then", "else")
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")


def check_schema(schema: Any) -> str:
    """The schema as JSON text. Raises RequestError naming what is wrong and where, as a JSON pointer."""
    if not isinstance(schema, (Mapping, bool)):
        raise RequestError(
            f"The schema is {schema!r:.60}.", "Give a JSON schema: an object, as a dict, or a bool."
        )
    nodes = list(_walk(schema))
    places = {node.where: node.value for node in nodes}
    references = [node for node in nodes if not node.data and isinstance(_get(node.value, "$ref"), str)]
    for node in references:
        if not node.value["$ref"].startswith("#"):
            raise RequestError(
                f"The schema refers to {node.value['$ref']!r:.200} at {node.where}/$ref.",
                "Nothing is fetched: put a copy under $defs and refer to '#/$defs/...'.",
            )
    if len(references) > MOST_REFERENCES:
        raise RequestError(
            f"The schema has {len(references)} references ($ref).",
            f"At most {MOST_REFERENCES} are followed; use a simpler schema.",
        )
    _check_loops(places)
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, default=dict)
        size = len(text.encode())
    except (TypeError, ValueError) as error:
        raise RequestError(f"The schema is not JSON: {error}.", "Use what json.dumps can write.") from error
    if size > MOST_BYTES:
        raise RequestError(f"The schema has {size} bytes.", f"At most {MOST_BYTES} are taken.")
    return text


def places(schema: Any) -> Iterator[tuple[str, Any]]:
    """The JSON pointer of every object and array of a schema that was checked, and what it is."""
    return ((node.where, node.value) for node in _walk(schema))


class _Node(NamedTuple):
    where: str
    value: Any
    depth: int
    names: bool  # whether its keys are names and no keywords
    data: bool  # whether it is a value and no schema


def _walk(schema: Any) -> Iterator[_Node]:
    """Every object and array in it; an object that contains itself ends at the deepest level allowed."""
    waiting = [_Node("#", schema, 1, False, False)]
    count = 0
    while waiting:
        node = waiting.pop()
        if not isinstance(node.value, (Mapping, list, tuple)):
            continue
        count += 1
        if node.depth > DEEPEST or count > MOST_BYTES:
            raise RequestError(
                f"The schema is nested more than {DEEPEST} levels deep or endless, at {node.where:.100}.",
                "Put inner parts under $defs and refer to them.",
            )
        yield node
        if isinstance(node.value, Mapping):
            for key, value in node.value.items():
                if not isinstance(key, str):
                    raise RequestError(
                        f"The schema has the key {key!r:.60} at {node.where}.", "Keys of JSON are strings."
                    )
                inside = f"{node.where}/{key.replace('~', '~0').replace('/', '~1')}"
                names = key in _NAMES and not node.names
                data = node.data or (key in _DATA and not node.names)
                waiting.append(_Node(inside, value, node.depth + 1, names, data))
        else:
            for i, value in enumerate(node.value):
                waiting.append(_Node(f"{node.where}/{i}", value, node.depth + 1, False, node.data))


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _check_loops(places: Mapping[str, Any]) -> None:
    """A schema that stands for itself at one place of a text says nothing, and enforcing it takes seconds."""
    done: set[str] = set()
    for start in places:
        path: list[str] = []
        on_path: set[str] = set()
        waiting = [(start, False)]
        while waiting:
            where, left = waiting.pop()
            if left:
                on_path.discard(path.pop())
                done.add(where)
            elif where in on_path:
                raise RequestError(
                    f"The schema at {where} refers back to itself with no property or item between.",
                    "Take the loop out.",
                )
            elif where not in done:
                path.append(where)
                on_path.add(where)
                waiting.append((where, True))
                waiting.extend((inner, False) for inner in _in_place(where, places.get(where)))


def _in_place(where: str, schema: Any) -> Iterator[str]:
    """Where the schemas are that apply to the same part of a text as this one."""
    if not isinstance(schema, Mapping):
        return
    reference = schema.get("$ref")
    if isinstance(reference, str):
        yield unquote(reference).rstrip("/") if len(reference) > 1 else "#"
    for key in _IN_PLACE:
        if key in schema:
            yield f"{where}/{key}"
    for key in _IN_PLACE_LISTS:
        if isinstance(schema.get(key), (list, tuple)):
            yield from (f"{where}/{key}/{i}" for i in range(len(schema[key])))
