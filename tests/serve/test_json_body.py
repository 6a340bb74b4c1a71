"""Bodies: what is no JSON for everybody, and what would take long to refuse."""

from __future__ import annotations

import importlib
import json
import pkgutil

import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from standin_engine import StandInEngine, post_bytes

import qwenkit.serve
from qwenkit.serve.errors import ServeError
from qwenkit.serve.http.json_body import DEEPEST, MOST_KEYS, MOST_PARTS, JSONRoute, parse
from qwenkit.serve.openai.schemas import DetokenizeRequest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = b'"messages":[{"role":"user","content":"a"}]'

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(values, st.booleans())
def test_what_is_json_is_read_as_it_is(value: object, ascii_only: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{}{}", "invalid_json"),
        (b"{}\0", "invalid_json"),
        (b'{"a":NaN}', "invalid_json"),
        (b'{"a":-Infinity}', "invalid_json"),
        (b'{"a":"\xff"}', "invalid_json"),
        (b'{"a":"\xed\xa0\x80"}', "invalid_json"),  # half a character, as some encoders write it
        ('{"a":1}'.encode("utf-16"), "invalid_json"),
        (b'{"a":1,"a":1}', "invalid_json"),
        (b'{"a":[{"b":1,"b":2}]}', "invalid_json"),
        (b'{"a":' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"a":"\\uD800"}', "invalid_value"),
        (b'{"\\udfff":1}', "invalid_value"),
        (b"[" * DEEPEST + b"]" * DEEPEST, None),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "limit_exceeded"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "limit_exceeded"),
        (b"[" * 1_000_000, "limit_exceeded"),
        (json.dumps({str(i): i for i in range(MOST_KEYS)}).encode(), None),
        (json.dumps({str(i): i for i in range(MOST_KEYS + 1)}).encode(), "limit_exceeded"),
        (b"[" + b",".join([b"[]"] * (MOST_PARTS - 1)) + b"]", None),
        (b"[" + b",".join([b"{}"] * MOST_PARTS) + b"]", "limit_exceeded"),
        (b'"' + b"[{" * MOST_PARTS + b'"', None),
        (b'{"a":"\\ud83d\\ude00","b":"\\\\ud800"}', None),
        (b'\xef\xbb\xbf{"a":1e400}', None),
    ],
)
def test_what_is_not_says_why(body: bytes, code: str | None) -> None:
    if code is None:
        parse(body)
        return
    with pytest.raises(ServeError) as told:
        parse(body)
    assert (told.value.status, told.value.code) == (400, code)


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded", "application/jsonp"])
def test_what_a_web_page_may_send_unasked_is_no_json(kind: str) -> None:
    engine = StandInEngine()
    answer = post_bytes(CHAT, b"{" + HI + b"}", engine, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert not engine.wishes


def test_every_body_is_read_so() -> None:
    names = [found.name for found in pkgutil.walk_packages(qwenkit.serve.__path__, "qwenkit.serve.")]
    modules = [importlib.import_module(name) for name in names if "routes" in name]
    routes = [route for module in modules for route in getattr(module.router, "routes", ())]
    bodies = [route for route in routes if isinstance(route, APIRoute) and route.body_field]
    assert len(bodies) >= 8
    assert all(isinstance(route, JSONRoute) for route in bodies)


@pytest.mark.parametrize(
    ("path", "before", "item", "after"),
    [
        (TEXT, b'{"prompt":[', b"[]", b"]}"),
        (TEXT, b'{"prompt":[', b"null", b"]}"),
        (TEXT, b'{"prompt":[1,', b'"a"', b"]}"),
        (CHAT, b'{"messages":[', b"{}", b"]}"),
        (CHAT, b'{"messages":[{"role":"user","content":[', b"{}", b"]}]}"),
        (CHAT, b"{" + HI + b',"stop":[', b"1", b"]}"),
        ("/detokenize", b'{"tokens":[', b'"a"', b"]}"),
    ],
)
def test_many_mistakes_are_one(path: str, before: bytes, item: bytes, after: bytes) -> None:
    """Listing all of a million would take half a minute and gigabytes."""
    answer = post_bytes(path, before + b",".join([item] * 15_000) + after)
    assert answer.status_code == 400


def test_the_first_wrong_item_of_a_list_is_the_last_that_is_looked_at() -> None:
    with pytest.raises(ValueError) as told:
        DetokenizeRequest.model_validate({"tokens": ["a", "b", "c"]})
    assert str(told.value).startswith("1 validation error")
