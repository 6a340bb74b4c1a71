"""/v1/responses in OpenAI's shapes: what is asked of the engine, what comes back, what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from running_server import RunningServer
from standin_engine import StandInEngine, post

from qwenkit.core import Grammar, Message, TokenLogprob, ToolCall, ToolUse
from qwenkit.core.tools import Tool, ToolChoice
from qwenkit.serve.engine.reply import ReplyGroup
from qwenkit.serve.engine.supervisor import Wish
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.responses.schemas import LOGPROBS, UNSUPPORTED
from qwenkit.text.hermes import Hermes

PATH = "/v1/responses"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "weather", "description": "w", "parameters": CITY, "strict": True}
CALLS = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def speaking(reply: str, finish: Any = "stop") -> StandInEngine:
    engine = StandInEngine()
    engine.pieces, engine.finish = tuple(reply), finish
    return engine


def error(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["error"]
    return found


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The data of a stream: named, numbered, and each of a kind that OpenAI has."""
    parts = answer.text.split("\n\n")
    assert parts.pop() == ""
    found = []
    for i, part in enumerate(parts):
        name, data = part.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        assert found[-1]["sequence_number"] == i
        EVENT.validate_python(found[-1])
    return found


def test_a_response() -> None:
    asked = {"input": "hi", "model": "tiny", "metadata": {"a": "b"}, "instructions": "be", "temperature": 0.5}
    answer = post(PATH, **asked)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    read = Response.model_validate(body)
    assert read.output_text == "Hello 中"
    assert body["id"].startswith("resp_")
    assert (body["object"], body["status"], body["model"]) == ("response", "completed", "tiny")
    assert (body["metadata"], body["instructions"], body["temperature"]) == ({"a": "b"}, "be", 0.5)
    assert (body["store"], body["error"], body["incomplete_details"]) == (False, None, None)
    (item,) = body["output"]
    assert item.pop("id").startswith("msg_")
    part = {"type": "output_text", "text": "Hello 中", "annotations": [], "logprobs": []}
    assert item == {"type": "message", "status": "completed", "role": "assistant", "content": [part]}
    assert body["usage"]["input_tokens"] == body["usage"]["output_tokens"] == 3


def test_the_events_of_a_stream() -> None:
    found = events(post(PATH, input="hi", stream=True))
    assert [one["type"].removeprefix("response.") for one in found] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    whole = found[-1]["response"]
    assert found[0]["response"]["output"] == []
    assert found[4]["delta"] == found[5]["text"] == "Hello 中"
    assert found[7]["item"] == whole["output"][0]
    assert {one["item_id"] for one in found[3:7]} == {whole["output"][0]["id"]}
    assert whole["usage"]["total_tokens"] == 6


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_items(stream: bool) -> None:
    answer = post(PATH, speaking(CALLS), tools=[WEATHER], stream=stream, input="hi")
    if stream:
        found = events(answer)
        body = found[-1]["response"]
        for kind, name in (("delta", "delta"), ("done", "arguments")):
            texts: dict[int, str] = {1: "", 2: ""}
            for one in found:
                if one["type"] == f"response.function_call_arguments.{kind}":
                    texts[one["output_index"]] += one[name]
            assert [json.loads(texts[i]) for i in (1, 2)] == [{"city": "北京"}, {"city": "Oslo"}]
        added = [one["item"] for one in found if one["type"] == "response.output_item.added"]
        done = [one["item"] for one in found if one["type"] == "response.output_item.done"]
        assert [one["id"] for one in added] == [one["id"] for one in done]
        assert done == body["output"]
        assert [one["status"] for one in added] == ["in_progress"] * 3
    else:
        body = answer.json()
    Response.model_validate(body)
    message, first, second = body["output"]
    assert message["content"][0]["text"] == "Let me see."
    assert len({first["call_id"], second["call_id"], first["id"], second["id"]}) == 4
    for item, arguments in ((first, '{"city": "北京"}'), (second, '{"city": "Oslo"}')):
        assert (item["type"], item["name"], item["arguments"]) == ("function_call", "weather", arguments)
        assert item["status"] == "completed"
    assert body["tools"] == [WEATHER]


class Logged(StandInEngine):
    """Tells the log probability of each piece, whose number is its negative."""

    def generate(self, wishes: Sequence[Wish]) -> ReplyGroup:
        group = super().generate(wishes)
        for reply in group.replies:
            for delta, number in zip(reply._pending[0], range(len(self.pieces)), strict=False):
                token = TokenLogprob(number, delta.text.encode(), -float(number))
                object.__setattr__(delta, "logprobs", (token,))
        return group


@pytest.mark.parametrize("stream", [False, True])
def test_text_is_told_the_log_probabilities_of_its_own_tokens(stream: bool) -> None:
    engine = Logged()
    engine.pieces = ("Let", " me", " see.\n", *CALLS[12:])
    answer = post(PATH, engine, tools=[WEATHER], input="hi", include=[LOGPROBS], stream=stream)
    own = [(piece, -float(i)) for i, piece in enumerate(engine.pieces[:3])]
    if stream:
        found = events(answer)
        told = [one for one in found if one["type"] == "response.output_text.delta"]
        assert [(t["token"], t["logprob"]) for one in told for t in one["logprobs"]] == own
        (done,) = (one for one in found if one["type"] == "response.output_text.done")
        (part,) = (one["part"] for one in found if one["type"] == "response.content_part.done")
        body = found[-1]["response"]
        assert done["logprobs"] == part["logprobs"] == body["output"][0]["content"][0]["logprobs"]
    else:
        body = answer.json()
    assert [(t["token"], t["logprob"]) for t in body["output"][0]["content"][0]["logprobs"]] == own
    assert [item["type"] for item in body["output"]] == ["message", "function_call", "function_call"]


def test_what_is_cut_is_incomplete() -> None:
    body = post(PATH, speaking(CALLS[:67], "length"), tools=[WEATHER], input="hi").json()
    assert body["status"] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in body["output"]] == ["completed", "incomplete"]
    *_, last = events(post(PATH, speaking("Hello", "length"), input="hi", stream=True))
    assert last["type"] == "response.incomplete"


def test_every_field_reaches_the_engine() -> None:
    engine = StandInEngine()
    schema = {"type": "object"}
    answer = post(
        PATH, engine, instructions="be", temperature=0.5, top_p=0.9, max_output_tokens=9, top_logprobs=2,
        include=["message.output_text.logprobs", "reasoning.encrypted_content"], user="u", store=False,
        input=[{"role": "developer", "content": "brief"},
               {"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
        text={"format": {"type": "json_schema", "name": "n", "schema": schema}}, prompt_cache_key="k",
        truncation="disabled", background=False, reasoning={"effort": "none"}, service_tier="auto",
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    (wish,) = engine.wishes
    assert wish.prompt == (Message("system", "be\n\nbrief"), Message("user", "a"))
    params = wish.params
    assert (params.temperature, params.top_p, params.max_tokens, params.logprobs) == (0.5, 0.9, 9, 2)
    assert params.grammar == Grammar.json_schema(schema)
    assert post(PATH, engine, input="a", text={"format": {"type": "json_object"}}).status_code == 200
    assert engine.wishes[1].params.grammar == Grammar.json_object()


def test_a_conversation_goes_on_with_what_a_response_had() -> None:
    engine = speaking(CALLS)
    output = post(PATH, engine, tools=[WEATHER], input="hi").json()["output"]
    results = [
        {"type": "function_call_output", "call_id": output[1]["call_id"], "output": "rain"},
        {"type": "function_call_output", "call_id": output[2]["call_id"],
         "output": [{"type": "input_text", "text": "sun"}]},
    ]  # fmt: skip
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]}
    history = [{"role": "user", "content": "hi"}, *output, *results]
    answer = post(PATH, engine, tools=[WEATHER], input=history, tool_choice=choice, parallel_tool_calls=False)
    assert answer.status_code == 200, answer.text
    calls = tuple(ToolCall("weather", item["arguments"], item["call_id"]) for item in output[1:])
    said = [
        Message("user", "hi"),
        Message("assistant", "Let me see.", calls),
        Message("tool", "rain", tool_call_id=calls[0].id),
        Message("tool", "sun", tool_call_id=calls[1].id),
    ]
    tools = (Tool("weather", "w", CITY),)
    assert engine.card is not None
    assert engine.wishes[1].prompt == Hermes().turns(said, tools, engine.card.default_system)
    use = ToolUse(tools, ToolChoice("required", ("weather",), parallel=False))
    assert engine.wishes[1].params.grammar == Hermes().grammar(use)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_fields_are_refused_by_name_unless_they_ask_for_nothing(name: str) -> None:
    assert error(post(PATH, input="a", **{name: {"a": ["thing"]}}))["param"] == name
    for harmless in (None, *UNSUPPORTED[name][1]):
        assert post(PATH, input="a", **{name: harmless}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": None}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"n": 2}, "n", "unknown_parameter"),
        ({"input": [{"role": "pope", "content": "a"}]}, "input", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input", "invalid_value"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "invalid_value"),
        ({"input": [{"role": "system", "content": "a"}]}, "input", "invalid_value"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "input.1.role",
         "invalid_value"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input.0.call_id",
         "invalid_value"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"include": ["file_search_call.results"]}, "include.0", "invalid_value"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "invalid_value"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"$ref": "http://a"}}}},
         "text.format", "invalid_value"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "invalid_value"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0.name", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(body: dict[str, Any], param: str, code: str) -> None:
    found = error(post(PATH, **{"input": "hi", **body}))
    assert (found["param"], found["code"]) == (param, code)


def test_an_error_in_a_stream_is_a_failed_response() -> None:
    engine = StandInEngine(silent=True)
    answer = post(PATH, engine, input="a", stream=True, settings={"limits": Limits(request_s=0.05)})
    *_, last = events(answer)
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert "0.05 s" in last["response"]["error"]["message"]
    assert engine.cancelled == 1


def test_openai_python_whole_streamed_and_with_logprobs(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked: Any = {"model": "gpt-test", "input": "hi", "temperature": 0, "max_output_tokens": 24}
        whole = client.responses.create(**asked)
        told = list(client.responses.create(**asked, stream=True))
        text = "".join(one.delta for one in told if one.type == "response.output_text.delta")
        final = told[-1].response  # type: ignore[union-attr]
        assert whole.output_text == text == final.output_text
        assert (whole.status, final.status) == ("incomplete", "incomplete")
        assert whole.usage is not None
        assert final.usage is not None
        assert whole.usage.output_tokens == final.usage.output_tokens == 24
        logged = client.responses.create(**asked, include=["message.output_text.logprobs"], top_logprobs=1)
        tokens = logged.output[0].content[0].logprobs  # type: ignore[union-attr]
        assert b"".join(bytes(one.bytes) for one in tokens or []).decode(errors="replace") == text
        chat = client.chat.completions.create(
            model="gpt-test", messages=[{"role": "user", "content": "hi"}], temperature=0, max_tokens=24
        )
        assert chat.choices[0].message.content == text
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**{**asked, "max_output_tokens": 100_000})
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
        hot = {"type": "object", "properties": {"hot": {"type": "boolean"}}, "required": ["hot"],
               "additionalProperties": False}  # fmt: skip
        called = client.responses.create(
            model="gpt-test", input="hi", temperature=0, max_output_tokens=200,
            tools=[{"type": "function", "name": "weather", "parameters": hot, "strict": True}],
            tool_choice={"type": "function", "name": "weather"},
        )  # fmt: skip
        (item,) = [one for one in called.output if one.type == "function_call"]
        assert json.loads(item.arguments).keys() == {"hot"}
