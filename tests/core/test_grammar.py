"""What a grammar may say, checked without compiling it."""

from __future__ import annotations

import json
import sys

import pytest

from qwenkit.core import Grammar, RequestError, SamplingParams


def deep(levels: int) -> dict:
    schema: dict = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


CIRCLE: dict = {"type": "object"}
CIRCLE["properties"] = CIRCLE


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ([], "The schema is \\[\\]"),
        ("{}", "Give a JSON schema"),
        (
            {"items": {"$ref": "https://example.com/a.json"}},
            "example.com/a.json' at #/items/\\$ref.*Nothing is",
        ),
        ({"$ref": "other.json#/a"}, "other.json"),
        ({"properties": {"const": {"$ref": "file:///etc/passwd"}}}, "at #/properties/const/\\$ref"),
        (deep(100), "more than 100 levels"),
        (CIRCLE, "more than 100 levels deep or endless"),
        ({"enum": [float("nan")]}, "not JSON"),
        ({"enum": [{1, 2}]}, "not JSON"),
        ({"enum": ["\ud800"]}, "not JSON"),
        ({"properties": {1: {}}}, "key 1 at #/properties"),
        ({"enum": ["x" * 1000] * 300}, "has 30.... bytes.*262144"),
        ({"items": [{"$ref": "#/a"}] * 501}, "501 references"),
        ({"$ref": "#"}, "at # refers back to itself"),
        (
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{}, {"$ref": "#/%24defs/a"}]}}},
            "back to itself",
        ),
        ({"items": {"allOf": [{"not": {"$ref": "#/items"}}]}}, "refers back to itself"),
    ],
)
def test_a_hostile_schema_is_refused_by_name_and_place(schema, words):
    with pytest.raises(RequestError, match=words):
        Grammar.json_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        True,
        deep(99),
        {"type": "object", "properties": {"next": {"$ref": "#"}, "$ref": {"type": "string"}}},
        {"enum": [{"$ref": "https://example.com"}], "default": {"$ref": "x"}},
        {"properties": {"anyOf": {"type": "string"}, "a~/b": {"const": 1}}},
        {"$defs": {"a": {"type": "null"}}, "anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]},
        {"$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "$ref": "#/$defs/tree"},
    ],
)
def test_a_schema_is_kept_as_it_stands(schema):
    assert json.loads(Grammar.json_schema(schema).text) == schema


def test_loops_are_found_in_schemas_of_many_references_at_once():
    many = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{j}"} for j in range(20)]} for i in range(20)}
    with pytest.raises(RequestError, match="back to itself"):
        Grammar.json_schema({"$defs": many, "$ref": "#/$defs/d0"})
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(400)} | {"d400": {"type": "null"}}
    assert sys.getrecursionlimit() < 10_000
    Grammar.json_schema({"$defs": chain, "$ref": "#/$defs/d0"})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grammar.regex(""), "regex is ''"),
        (lambda: Grammar.regex(5), "regex is 5"),
        (lambda: Grammar.regex("a" * 8193), "8193 bytes.*8192"),
        (lambda: Grammar.regex("\udc80"), "half a character"),
        (lambda: Grammar.choice([]), "choices are \\[\\]"),
        (lambda: Grammar.choice("ab"), "choices are 'ab'"),
        (lambda: Grammar.choice(["a", ""]), "choice 1 is ''"),
        (lambda: Grammar.choice(["a" * 1000] * 300), "300000 bytes"),
        (lambda: Grammar.lark("start: " + "a" * 8200), "8207 bytes"),
        (lambda: Grammar.lark('start: "a"\n  | %json {"type": }'), "in line 2 of the Lark"),
        (lambda: Grammar.lark('start: %json {"$ref": "#"}'), "Line 1 of the Lark grammar: .*itself"),
        (lambda: SamplingParams(grammar={"type": "object"}), "Give a Grammar"),
    ],
)
def test_wrong_grammars_are_refused(make, words):
    with pytest.raises(RequestError, match=words):
        make()


def test_grammars_are_values():
    assert Grammar.choice(["a", "b"]) == Grammar.choice(("a", "b"))
    assert SamplingParams(grammar=Grammar.json_object()) == SamplingParams(grammar=Grammar.json_object())
    schema = {"type": "string", "description": "x" * 9000 + " %json {"}
    assert Grammar.lark(f"start: <|im_start|> %json {json.dumps(schema)}").kind == "lark"
