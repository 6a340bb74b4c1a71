"""What the arguments of a tool must look like, as a JSON schema of an object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwenkit.core import RequestError, Tool
from qwenkit.core.json_schema import check_schema

RULE_BYTES = 96 * 1024
"""Of a grammar's rules: 128 tools have less, whatever their names."""

_OPEN = ("additionalProperties", "unevaluatedProperties", "patternProperties", "anyOf", "oneOf", "$ref", "if")
"""Keywords with which properties of other names may belong to an object."""


def arguments_schema(tool: Tool) -> str:
    """The schema that is enforced, as JSON: the tool's own, of an object, and closed (see `closed`).

    Raises RequestError naming the tool for what is no schema or none of an object.
    """
    parameters = tool.parameters
    if isinstance(parameters, Sequence) and not isinstance(parameters, str):
        parameters = _of_list(tool.name, parameters)
    schema = {} if parameters is None else parameters
    if not isinstance(schema, Mapping):
        raise RequestError(f"The parameters of tool {tool.name!r} are {schema!r:.60}.", "Give a JSON schema.")
    if schema.get("type", "object") != "object":
        raise RequestError(
            f"The parameters of tool {tool.name!r} are of type {schema['type']!r:.60}.",
            "Arguments are a JSON object: use type 'object'.",
        )
    try:
        check_schema(schema)  # before it is followed
        whole = {"type": "object", "properties": {}} if not schema else {**schema, "type": "object"}
        return check_schema(closed(whole))
    except RequestError as error:
        raise RequestError(f"Tool {tool.name!r}: {error.problem}", error.remedy) from error


def closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema in which objects whose properties are listed have no others, unless it speaks of them.

    Stricter than JSON schema's rule, and what tools mean: most would fail on a name they do not know. A
    schema that uses allOf, whose parts see each other's properties, stays as it is.
    """
    found = _closed(schema)
    return schema if found is None else found


def _closed(schema: Any) -> Any:
    """None: it uses allOf somewhere."""
    if not isinstance(schema, Mapping):
        return schema
    if "allOf" in schema:
        return None
    result = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(inner := schema.get(key), Mapping):
            result[key] = {name: _closed(part) for name, part in inner.items()}
            if any(part is None for part in result[key].values()):
                return None
    for key in ("items", "additionalProperties"):
        if key in schema and (part := _closed(schema[key])) is not None:
            result[key] = part
        elif key in schema and schema[key] is not None:
            return None
    for key in ("anyOf", "oneOf", "prefixItems"):
        if isinstance(inner := schema.get(key), Sequence) and not isinstance(inner, str):
            result[key] = [_closed(part) for part in inner]
            if any(part is None for part in result[key]):
                return None
    if isinstance(schema.get("properties"), Mapping) and not any(key in schema for key in _OPEN):
        result["additionalProperties"] = False
    return result


def _of_list(name: str, parameters: Sequence[Any]) -> dict[str, Any]:
    """Qwen's own way to write parameters (reference: tools section 1)."""
    properties: dict[str, Any] = {}
    for i, one in enumerate(parameters):
        if not isinstance(one, Mapping) or not isinstance(one.get("name"), str):
            raise RequestError(
                f"Parameter {i} of tool {name!r} is {one!r:.60}.",
                "Each needs a name, and may have description, required and schema; or give a JSON schema.",
            )
        schema = one.get("schema") or {key: one[key] for key in ("type", "enum", "items") if key in one}
        properties[one["name"]] = schema
    required = [one["name"] for one in parameters if one.get("required")]
    return {"type": "object", "properties": properties, "required": required}
