"""/v1/embeddings: shapes, refusals by name, and the numbers of the engine as clients read them."""

from __future__ import annotations

import asyncio
import base64
import struct
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from running_server import RunningServer, eventually
from standin_engine import StandInEngine, ask, post

from qwenkit import Qwen
from qwenkit.serve.errors import ServeError
from qwenkit.serve.guard.limits import Limits

PATH = "/v1/embeddings"


def test_the_shape_is_openais() -> None:
    engine = StandInEngine()
    body = post(PATH, engine, model="tiny", input=["a", "b"], dimensions=2, user="u").json()
    assert body == {
        "object": "list",
        "model": "tiny",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.100000001, 0.0]},
            {"object": "embedding", "index": 1, "embedding": [0.100000001, 1.0]},
        ],
    }
    assert struct.pack("<f", body["data"][0]["embedding"][0]) == struct.pack("<f", 0.1)
    packed = post(PATH, engine, input="a", encoding_format="base64", pooling="last").json()
    assert base64.b64decode(packed["data"][0]["embedding"]) == struct.pack("<2f", 0.1, 0)
    assert engine.embeds == [(["a", "b"], "mean"), (["a"], "last")]


@pytest.mark.parametrize(
    ("given", "inputs"),
    [("a", ["a"]), (["a", ""], ["a", ""]), ([1, 2], [(1, 2)]), ([[1], [2, 3]], [(1,), (2, 3)])],
)
def test_texts_and_token_ids_reach_the_engine(given: Any, inputs: list[Any]) -> None:
    engine = StandInEngine()
    post(PATH, engine, input=given)
    assert engine.embeds == [(inputs, "mean")]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [[]]}, "input", "invalid_value"),
        ({"input": ["a", 1]}, "input", "invalid_value"),
        ({"input": 5}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "limit_exceeded"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"input": "a", "dimensions": 1}, "dimensions", "unsupported_parameter"),
        ({"input": "a", "dimensions": 0}, "dimensions", "invalid_value"),
        ({"input": "a", "pooling": "max"}, "pooling", "invalid_value"),
        ({"input": "a", "truncate": True}, "truncate", "unknown_parameter"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str, code: str) -> None:
    answer = post(PATH, **body)
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (param, code)


def test_what_the_engine_refuses_is_of_the_input() -> None:
    engine = StandInEngine()
    engine.break_with = ServeError("Input 2 of 2 is empty.", code="invalid_value")
    assert post(PATH, engine, input="a").json()["error"]["param"] == "input"


def test_one_that_takes_too_long_is_a_504_and_is_given_up() -> None:
    engine = StandInEngine(silent=True)
    answer = post(PATH, engine, input="a", settings={"limits": Limits(request_s=0.05)})
    assert (answer.status_code, engine.cancelled) == (504, 1)


def test_a_client_that_leaves_stops_it() -> None:
    engine = StandInEngine(silent=True)

    async def what(client: httpx.AsyncClient) -> None:
        asking = asyncio.create_task(client.post(PATH, json={"input": "a"}))
        while not engine.embeds:
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    ask(what, engine)
    assert engine.cancelled == 1


def test_openai_python_reads_the_models_own_vectors(server: RunningServer, tiny_chat: Path) -> None:
    texts = ["one", "two two", "中文 " * 300]
    expected = Qwen.load(tiny_chat).embed(texts)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        packed = client.embeddings.create(model="gpt-test", input=texts)
        plain = client.embeddings.create(model="gpt-test", input=texts, encoding_format="float")
        for found in (packed, plain):
            assert [one.index for one in found.data] == [0, 1, 2]
            vectors = torch.tensor([one.embedding for one in found.data])
            torch.testing.assert_close(vectors, expected, rtol=0, atol=0)
        assert packed.usage.prompt_tokens == packed.usage.total_tokens > 300
        with pytest.raises(openai.BadRequestError, match="Input 2 of 2 has") as told:
            client.embeddings.create(model="gpt-test", input=["a", "b " * 9000])
        assert (told.value.param, told.value.code) == ("input", "context_length_exceeded")
        with pytest.raises(openai.BadRequestError, match="Input 1 of 1 is empty") as told:
            client.embeddings.create(model="gpt-test", input="")
        assert told.value.param == "input"


def test_a_client_that_leaves_frees_the_engine(server: RunningServer) -> None:
    with server.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(PATH, json={"input": ["b " * 4000] * 500}, timeout=0.5)
    eventually(lambda: server.engine_numbers()["requests"] == 0)
    with server.client() as client:
        assert client.post(PATH, json={"input": "a"}).status_code == 200
