"""Every field works or is refused by name, in OpenAI's error shape."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from standin_engine import StandInEngine, ask, post

from qwenkit.core import Grammar, Infill, Message
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.openai.schemas import UNSUPPORTED

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def error(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    found: dict[str, Any] = body["error"]
    return found


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        (CHAT, {"messages": HI, "temprature": 1}, "temprature", "unknown_parameter"),
        (CHAT, {"messages": [{**HI[0], "mood": "good"}]}, "messages.0.mood", "unknown_parameter"),
        (CHAT, {"messages": HI, "stream": True, "stream_options": {"include_obfuscation": 0}},
         "stream_options.include_obfuscation", "invalid_value"),
        ("/v1/responses", {"input": "Hi", "stream": True, "stream_options": {"include_obfuscation": 0}},
         "stream_options.include_obfuscation", "invalid_value"),
        (CHAT, {"messages": HI, "stream": True, "stream_options": {"x": 1}}, "stream_options.x",
         "unknown_parameter"),
        (CHAT, {}, "messages", "missing_required_parameter"),
        (CHAT, {"messages": []}, "messages", "invalid_value"),
        (CHAT, {"messages": [{"role": "pope", "content": "4"}]}, "messages.0.role", "invalid_value"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages.0.content", "invalid_value"),
        (CHAT, {"messages": [{**HI[0], "name": "Eve"}]}, "messages.0.name", "unsupported_parameter"),
        (CHAT, {"messages": HI, "temperature": "1"}, "temperature", "invalid_value"),
        (CHAT, {"messages": HI, "temperature": -1}, "temperature", "invalid_value"),
        (CHAT, {"messages": HI, "top_p": 2}, "top_p", "invalid_value"),
        (CHAT, {"messages": HI, "n": 0}, "n", "invalid_value"),
        (CHAT, {"messages": HI, "n": 17}, "n", "limit_exceeded"),
        (CHAT, {"messages": HI, "n": True}, "n", "invalid_value"),
        (CHAT, {"messages": HI, "stop": ["a"] * 17}, "stop", "limit_exceeded"),
        (CHAT, {"messages": HI, "stop": "a" * 1001}, "stop", "limit_exceeded"),
        (CHAT, {"messages": HI, "stop": ""}, "stop", "invalid_value"),
        (CHAT, {"messages": HI, "stop": 5}, "stop", "invalid_value"),
        (CHAT, {"messages": HI, "max_tokens": 0}, "max_tokens", "invalid_value"),
        (CHAT, {"messages": HI, "max_tokens": 5, "max_completion_tokens": 5}, "max_completion_tokens",
         "invalid_value"),
        (CHAT, {"messages": HI, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
        (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "limit_exceeded"),
        (CHAT, {"messages": HI, "logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        (CHAT, {"messages": HI, "logit_bias": {"1": 1, "01": 2}}, "logit_bias", "invalid_value"),
        (CHAT, {"messages": HI, "logit_bias": {"\u0661": 1}}, "logit_bias", "invalid_value"),
        (CHAT, {"messages": HI, "logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        (CHAT, {"messages": HI, "stop_token_ids": [1] * 1025}, "stop_token_ids", "limit_exceeded"),
        (CHAT, {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"name": "x",
         "schema": {"enum": ["a" * 262144]}}}}, "response_format", "limit_exceeded"),
        (CHAT, {"messages": HI, "stream_options": {"include_usage": True}}, "stream_options",
         "invalid_value"),
        (CHAT, {"messages": HI, "response_format": {"type": "poem"}}, "response_format", "invalid_value"),
        (CHAT, {"messages": HI, "response_format": {"type": "json_schema",
         "json_schema": {"name": "x", "schema": {"$ref": "http://a/b"}}}}, "response_format",
         "invalid_value"),
        (TEXT, {"prompt": "a", "suffix": "b"}, "suffix", "unsupported_parameter"),
        (TEXT, {"prompt": "a", "n": 3, "best_of": 2}, "best_of", "invalid_value"),
        (TEXT, {"prompt": "a", "best_of": 17}, "best_of", "limit_exceeded"),
        (TEXT, {"prompt": "a", "best_of": 2, "stream": True}, "best_of", "invalid_value"),
        (TEXT, {"prompt": [1, "a"]}, "prompt", "invalid_value"),
        (TEXT, {"prompt": ["a"] * 65}, "prompt", "limit_exceeded"),
        (TEXT, {"prompt": "a", "max_tokens": 0}, "max_tokens", "invalid_value"),
        ("/tokenize", {"prompt": "a", "messages": HI}, "prompt", "invalid_value"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(path: str, body: dict[str, Any], param: str, code: str) -> None:
    found = error(post(path, **body))
    assert (found["param"], found["code"], found["type"]) == (param, code, "invalid_request_error")
    assert found["message"]


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_fields_are_refused_by_name_unless_they_ask_for_nothing(name: str) -> None:
    assert error(post(CHAT, messages=HI, **{name: {"a": ["thing"]}}))["param"] == name
    for harmless in (None, *UNSUPPORTED[name][1]):
        assert post(CHAT, messages=HI, **{name: harmless}).status_code == 200


def test_a_suffix_is_asked_for_where_the_vocabulary_has_tokens_for_it() -> None:
    engine = StandInEngine()
    assert engine.card is not None
    engine.card = replace(engine.card, infills=True)
    for prompt in (["a", "b"], [[1], [2]]):
        assert post(TEXT, engine, prompt=prompt, suffix="c").status_code == 200
    assert [wish.prompt for wish in engine.wishes] == [Infill(p, "c") for p in ("a", "b", (1,), (2,))]
    assert error(post(TEXT, engine, prompt="a", suffix="c", echo=True))["param"] == "echo"
    assert post(TEXT, StandInEngine(), prompt="a", suffix="", best_of=1).status_code == 200


def test_every_sampling_field_reaches_the_engine() -> None:
    engine = StandInEngine()
    sampling = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 3,
        "n": 2, "presence_penalty": 0.2, "frequency_penalty": 0.3, "max_completion_tokens": 9, "stop": "x",
        "stop_token_ids": [5], "ignore_eos": True, "logit_bias": {"12": 3}, "logprobs": True,
        "top_logprobs": 4,
        "response_format": {"type": "json_schema",
                            "json_schema": {"name": "n", "schema": {"type": "string"}}},
    }  # fmt: skip
    silent = {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k"}
    messages = [
        {"role": "developer", "content": "be"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
    ]
    assert post(CHAT, engine, messages=messages, **sampling, **silent).status_code == 200
    (wish,) = engine.wishes
    assert wish.prompt == (Message("system", "be"), Message("user", "a"))
    params = wish.params
    expected = {**sampling, "stop": ("x",), "stop_token_ids": (5,), "logit_bias": {12: 3}, "logprobs": 4}
    expected["max_tokens"] = expected.pop("max_completion_tokens")
    del expected["top_logprobs"], expected["response_format"]
    assert {name: getattr(params, name) for name in expected} == expected
    assert params.grammar == Grammar.json_schema({"type": "string"})


def test_what_is_not_given_is_left_to_the_checkpoint() -> None:
    engine = StandInEngine()
    post(CHAT, engine, messages=HI)
    params = engine.wishes[0].params
    assert params.temperature is params.top_p is params.max_tokens is params.seed is params.logprobs is None


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "missing_required_parameter"),
        (b"[]", "invalid_value"),
        (b"[" * 100_000, None),
        (b'{"messages":[{"role":"user","content":"\\ud800"}]}', "invalid_value"),
        (b'{"\\ud800":1}', "invalid_value"),
        (b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}', "invalid_json"),
        (b'{"messages":[{"role":"user","content":"a"}],"seed":1' + b"0" * 5000 + b"}", None),
        (b'{"messages":[{"role":"user","content":"a"}],"seed":' + b"9" * 30 + b"}", "invalid_value"),
        (b"\xff\xfe", None),
    ],
)
def test_bodies_that_are_no_request_are_a_400(content: bytes, code: str | None) -> None:
    async def what(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(CHAT, content=content, headers={"content-type": "application/json"})

    found = error(ask(what))
    assert code is None or found["code"] == code


def test_a_body_too_large_is_refused_whether_or_not_it_says_so() -> None:
    limits = Limits(body_bytes=1000)

    async def chunks() -> Any:
        for _ in range(3):
            yield b" " * 400

    async def what(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post(CHAT, content=b" " * 1001), await client.post(CHAT, content=chunks())]

    for answer in ask(what, limits=limits):
        assert error(answer, 413)["code"] == "body_too_large"


def test_unknown_paths_methods_and_models() -> None:
    async def what(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.get("/v2"),
            await client.get(CHAT),
            await client.get("/v1/models/other"),
            await client.post(CHAT, json={"model": "other", "messages": HI}),
            await client.get("/v1/models/tiny"),
        ]

    missing, method, get_model, post_model, there = ask(what)
    assert error(missing, 404)["code"] == "not_found"
    error(method, 405)
    assert error(get_model, 404)["code"] == error(post_model, 404)["code"] == "model_not_found"
    assert there.json()["id"] == "tiny"


def test_a_mistake_of_ours_is_a_500_that_tells_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    engine = StandInEngine()
    engine.break_with = RuntimeError("secret prompt")
    found = error(post(CHAT, engine, messages=HI), 500)
    assert "secret" not in json.dumps(found)
    assert "secret" not in capfd.readouterr().err


def test_the_openapi_document_can_be_made() -> None:
    async def what(client: httpx.AsyncClient) -> Any:
        return (await client.get("/openapi.json")).json()

    assert CHAT in ask(what)["paths"]
