"""/v1/messages in Anthropic's shapes: what is asked of the engine, what comes back, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from running_server import RunningServer
from standin_engine import StandInEngine, ask, post

from qwenkit.core import Grammar, Message, ToolCall, ToolUse, Turn
from qwenkit.core.tools import Tool, ToolChoice
from qwenkit.serve.guard.keys import Keys
from qwenkit.serve.guard.limits import Limits
from qwenkit.text.hermes import Hermes

PATH = "/v1/messages"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "w", "input_schema": CITY}
CALLS = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
)


def speaking(reply: str, finish: Any = "stop") -> StandInEngine:
    engine = StandInEngine()
    engine.pieces, engine.finish = tuple(reply), finish
    return engine


def error(answer: httpx.Response, status: int = 400) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"type", "error"}
    assert body["type"] == "error"
    assert body["error"].keys() == {"type", "message"}
    found: dict[str, str] = body["error"]
    return found


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The data of a stream, each of whose events must have its type as its name."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    parts = answer.text.split("\n\n")
    assert parts.pop() == ""
    found = []
    for part in parts:
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


@pytest.mark.parametrize("format", ["hermes", "react"])
@pytest.mark.parametrize("role", ["assistant", "user"])
def test_a_conversation_of_one_empty_message_is_no_mistake_of_ours(format: str, role: str) -> None:
    engine = StandInEngine()
    engine.card = replace(engine.card, tool_format=format)
    messages = [{"role": role, "content": ""}]
    for path, more in ((f"{PATH}/count_tokens", {}), (PATH, {"max_tokens": 5})):
        answer = post(path, engine, messages=messages, tools=[], **more)
        if (format, role) == ("react", "assistant"):  # it goes on only with an answer to somebody
            assert "at least one user message" in error(answer)["message"]
        else:
            assert answer.status_code == 200


def test_a_message() -> None:
    answer = post(PATH, model="tiny", **HI)
    body = answer.json()
    assert body.pop("id").startswith("msg_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [{"type": "text", "text": "Hello 中"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 3},
    }


def test_the_events_of_a_stream() -> None:
    first, ping, *middle, delta, last = events(post(PATH, stream=True, **HI))
    assert first["message"]["content"] == []
    assert first["message"]["usage"] == {"input_tokens": 3, "output_tokens": 0}
    assert first["message"]["stop_reason"] is None
    assert ping == {"type": "ping"}
    assert middle[0] == {
        "type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""},
    }  # fmt: skip
    assert "".join(one["delta"]["text"] for one in middle[1:-1]) == "Hello 中"
    assert middle[-1] == {"type": "content_block_stop", "index": 0}
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert delta["usage"] == {"input_tokens": 3, "output_tokens": 3}
    assert last == {"type": "message_stop"}


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_blocks(stream: bool) -> None:
    answer = post(PATH, speaking(CALLS), tools=[WEATHER], stream=stream, **HI)
    if not stream:
        content, reason = answer.json()["content"], answer.json()["stop_reason"]
    else:
        found = events(answer)
        starts = [one["content_block"] for one in found if one["type"] == "content_block_start"]
        assert [one["index"] for one in found if one["type"] == "content_block_stop"] == [0, 1, 2]
        texts: dict[int, str] = {0: "", 1: "", 2: ""}
        for one in found:
            if one["type"] == "content_block_delta":
                texts[one["index"]] += one["delta"].get("text", one["delta"].get("partial_json"))
        assert [one.get("input", {}) for one in starts] == [{}, {}, {}]
        content = [{**starts[0], "text": texts[0]}]
        content += [{**starts[i], "input": json.loads(texts[i])} for i in (1, 2)]
        reason = found[-2]["delta"]["stop_reason"]
    assert reason == "tool_use"
    ids = [block.pop("id") for block in content[1:]]
    assert len(set(ids)) == 2
    assert content == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "name": "weather", "input": {"city": "北京"}},
        {"type": "tool_use", "name": "weather", "input": {"city": "Oslo"}},
    ]


def test_a_cut_call_is_no_reason_to_run_it() -> None:
    body = post(PATH, speaking(CALLS[:67], "length"), tools=[WEATHER], **HI).json()
    assert body["stop_reason"] == "max_tokens"
    assert body["content"][1]["input"] == {}


def test_every_field_reaches_the_engine() -> None:
    engine = StandInEngine()
    schema = {"type": "object"}
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    answer = post(
        PATH, engine, system=[{"type": "text", "text": "be", **cached}], stop_sequences=["x", "y"],
        temperature=0.5, top_p=0.9, top_k=7, max_tokens=9, metadata={"user_id": "u"},
        messages=[{"role": "user", "content": [{"type": "text", "text": c, **cached} for c in "ab"]}],
        output_config={"format": {"type": "json_schema", "schema": schema}}, thinking={"type": "disabled"},
        service_tier="auto", tools=[], mcp_servers=[], **cached,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    (wish,) = engine.wishes
    assert wish.prompt == (Message("system", "be"), Message("user", "ab"))
    params = wish.params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.9, 7, 9)
    assert params.stop == ("x", "y")
    assert params.grammar == Grammar.json_schema(schema)


def test_calls_and_results_reach_the_engine_as_in_the_chat_endpoint() -> None:
    engine = StandInEngine()
    called = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}}
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
        {"type": "tool_result", "tool_use_id": "t1", "content": "no", "is_error": True},
        {"type": "text", "text": "And now?"},
    ]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, called]},
        {"role": "user", "content": results},
    ]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    answer = post(PATH, engine, messages=messages, max_tokens=5, tools=[WEATHER], tool_choice=choice)
    assert answer.status_code == 200, answer.text
    said = [
        Message("user", "hi"),
        Message("assistant", "I look.", (ToolCall("weather", '{"city": "Oslo"}', "t1"),)),
        Message("tool", "rain", tool_call_id="t1"),
        Message("tool", "Error: no", tool_call_id="t1"),
        Message("user", "And now?"),
    ]
    tools = (Tool("weather", "w", CITY),)
    assert engine.card is not None
    (wish,) = engine.wishes
    assert wish.prompt == Hermes().turns(said, tools, engine.card.default_system)
    use = ToolUse(tools, ToolChoice("required", None, parallel=False))
    assert wish.params.grammar == Hermes().grammar(use)


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ({"type": "auto"}, ToolChoice()),
        ({"type": "tool", "name": "weather"}, ToolChoice.named("weather")),
        ({"type": "none"}, None),
    ],
)
def test_choices(asked: dict[str, Any], choice: ToolChoice | None) -> None:
    engine = StandInEngine()
    post(PATH, engine, tools=[WEATHER], tool_choice=asked, **HI)
    tools = (Tool("weather", "w", CITY),)
    expected = None if choice is None else Hermes().grammar(ToolUse(tools, choice))
    assert engine.wishes[0].params.grammar == expected


def test_the_rest_of_a_turn_that_has_begun() -> None:
    engine = StandInEngine()
    begun = [*HI["messages"], {"role": "assistant", "content": "Well,"}]
    assert post(PATH, engine, messages=begun, max_tokens=5).status_code == 200
    assert engine.card is not None
    assert engine.wishes[0].prompt == (
        Turn("system", (engine.card.default_system,)),
        Turn("user", ("hi",)),
        Turn("assistant", ("Well,",), open=True),
    )
    refused = post(PATH, messages=begun, max_tokens=5, tools=[WEATHER])
    assert "The last message is the assistant's" in error(refused)["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"n": 2}, "n"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "mood": 1}]}]}, "messages"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking is not supported"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"container": "c"}, "container"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"$ref": "http://a"}}}}, "refers"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "'a b'"),
        ({"tools": [{"type": "web_search_20250305", "name": "a"}]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "'x'"),
        ({"tool_choice": {"type": "any"}}, "no tools"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]}, "'t'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_in_anthropics_shape(body: dict[str, Any], words: str) -> None:
    found = error(post(PATH, **{**HI, **body}))
    assert found["type"] == "invalid_request_error"
    assert words in found["message"]


def test_blocks_where_they_cannot_be() -> None:
    call = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "x"}
    text = {"type": "text", "text": "a"}
    for role, content, words in (
        ("user", [call], "messages.0.content.0 is a call of the user's"),
        ("assistant", [call, text], "messages.0.content.1 comes after a call"),
        ("assistant", [result], "messages.0.content.0 is a result"),
        ("user", [text, result], "messages.0.content.1 is a result"),
    ):
        answer = post(PATH, messages=[{"role": role, "content": content}], max_tokens=5)
        assert words in error(answer)["message"]


def test_errors_before_and_around_the_route_have_the_shape_too() -> None:
    key = {"x-api-key": "first-key-1"}

    async def what(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.post(PATH, json=HI),
            await client.post(PATH, content=b"{", headers={**key, "content-type": "application/json"}),
            await client.post(PATH, content=b" " * 1001, headers=key),
            await client.post(PATH, json=HI, headers={**key, "anthropic-version": "2023-01-01"}),
            await client.post(PATH, json={**HI, "model": "claude"}, headers=key),
            await client.get(PATH, headers=key),
            await client.post(PATH, json=HI, headers={**key, "anthropic-version": "2023-06-01"}),
            await client.get("/v1/models", headers={"x-api-key": "wrong-key-1"}),
        ]

    keyless, broken, large, version, model, method, good, wrong = ask(
        what, keys=Keys(["first-key-1"]), limits=Limits(body_bytes=1000)
    )
    assert error(keyless, 401)["type"] == "authentication_error"
    assert error(broken)["type"] == "invalid_request_error"
    assert error(large, 413)["type"] == "request_too_large"
    assert "anthropic-version" in error(version)["message"]
    assert error(model, 404)["type"] == "not_found_error"
    error(method, 405)
    assert good.status_code == 200
    assert (wrong.status_code, "type" in wrong.json()) == (401, False)


def test_an_error_in_a_stream_is_an_event() -> None:
    engine = StandInEngine(silent=True)
    answer = post(PATH, engine, stream=True, settings={"limits": Limits(request_s=0.05)}, **HI)
    *_, last = events(answer)
    assert last["type"] == "error"
    assert last["error"]["type"] == "timeout_error"
    assert engine.cancelled == 1


def test_an_engine_that_is_away_is_overloaded() -> None:
    engine = StandInEngine()
    engine.now = replace(engine.now, state="restarting", reason="because")
    assert error(post(PATH, engine, **HI), 503)["type"] == "overloaded_error"


def test_counting_tokens() -> None:
    answer = post(f"{PATH}/count_tokens", messages=HI["messages"], system="be", tools=[WEATHER])
    assert answer.json() == {"input_tokens": 3}
    assert error(post(f"{PATH}/count_tokens", **HI))["message"].startswith("Unrecognized")


def test_the_official_client(server: RunningServer) -> None:
    anthropic = pytest.importorskip("anthropic", reason="no part of qwenkit")
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    asked: Any = {"model": "gpt-test", "max_tokens": 24, **HI, "system": "Be brief."}
    whole = client.messages.create(**asked, extra_body={"temperature": 0})
    with client.messages.stream(**asked, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert whole.content[0].text == text == final.content[0].text
    assert final.usage == whole.usage
    assert (final.stop_reason, whole.stop_reason) == ("max_tokens", "max_tokens")
    assert client.messages.count_tokens(
        model="gpt-test", messages=HI["messages"], system="Be brief."
    ).input_tokens == whole.usage.input_tokens  # fmt: skip
    stop = text[5:8]
    cut = client.messages.create(**asked, stop_sequences=[stop], extra_body={"temperature": 0})
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert cut.content[0].text == text[: text.index(stop)]
    hot = {"type": "object", "properties": {"hot": {"type": "boolean"}}, "required": ["hot"]}
    weather = {"name": "weather", "input_schema": hot}
    forced: Any = {
        **asked,
        "tools": [weather],
        "tool_choice": {"type": "tool", "name": "weather"},
        "max_tokens": 200,
    }
    called = client.messages.create(**forced, extra_body={"temperature": 0})
    with client.messages.stream(**forced, extra_body={"temperature": 0}) as stream:
        streamed = stream.get_final_message()
    for message in (called, streamed):
        assert message.stop_reason == "tool_use"
        (block,) = [block for block in message.content if block.type == "tool_use"]
        assert block.input.keys() == {"hot"}
    with pytest.raises(anthropic.BadRequestError, match="20000"):
        client.messages.create(**{**asked, "max_tokens": 20_000})
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**asked, "model": "claude"})
