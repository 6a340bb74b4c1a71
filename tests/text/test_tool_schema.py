"""What is enforced of a tool's parameters."""

from __future__ import annotations

import json

import pytest

from qwenkit.core import RequestError, Tool
from qwenkit.text.tool_schema import arguments_schema

INNER = {"type": "object", "properties": {"a": {"type": "integer"}}}


def enforced(parameters):
    return json.loads(arguments_schema(Tool("t", "", parameters)))


@pytest.mark.parametrize("nothing", [None, {}, {"type": "object", "properties": {}}])
def test_a_tool_without_parameters_takes_an_empty_object(nothing):
    assert enforced(nothing) == {"type": "object", "properties": {}, "additionalProperties": False}


def test_objects_have_the_properties_that_are_listed():
    schema = {
        "properties": {
            "properties": INNER,
            "list": {"type": "array", "items": INNER},
            "either": {"anyOf": [INNER, {"type": "null"}]},
            "map": {"type": "object", "additionalProperties": INNER},
            "open": {**INNER, "additionalProperties": True},
            "any": {"type": "object"},
            "data": {"const": INNER},
        },
        "$defs": {"d": INNER},
    }
    shut = {**INNER, "additionalProperties": False}
    assert enforced(schema) == {
        "type": "object",
        "properties": {
            "properties": shut,
            "list": {"type": "array", "items": shut},
            "either": {"anyOf": [shut, {"type": "null"}]},
            "map": {"type": "object", "additionalProperties": shut},
            "open": {**INNER, "additionalProperties": True},
            "any": {"type": "object"},
            "data": {"const": INNER},
        },
        "$defs": {"d": shut},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "allOf": [INNER, INNER]},
        {"type": "object", "properties": {"x": {"items": {"allOf": [INNER]}}}},
        {"type": "object", "properties": {}, "$defs": {"x": {"anyOf": [{"allOf": [INNER]}]}}},
    ],
)
def test_a_schema_with_all_of_stays_as_it_is(schema):
    assert enforced(schema) == schema


def test_qwens_own_list():
    listed = [
        {"name": "query", "description": "q", "required": True, "schema": {"type": "string"}},
        {"name": "code", "type": "string", "description": "c"},
    ]
    assert enforced(listed) == {
        "type": "object",
        "properties": {"query": {"type": "string"}, "code": {"type": "string"}},
        "required": ["query"],
        "additionalProperties": False,
    }


LOOP = {"type": "object", "properties": {"x": {"$ref": "#/properties/x"}}}


@pytest.mark.parametrize(
    "wrong", ["x", 3, [3], {"type": "string"}, {"type": None}, {"properties": {1: 2}}, LOOP]
)
def test_what_is_no_schema_of_arguments_is_refused_naming_the_tool(wrong):
    with pytest.raises(RequestError, match="'t'"):
        arguments_schema(Tool("t", "", wrong))
