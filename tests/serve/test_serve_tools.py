"""Tools over HTTP: what is asked of the engine, what is refused, and how calls are written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from running_server import events
from standin_engine import StandInEngine, post

from qwenkit.core import Delta, Message, ToolCall, ToolChoice, ToolUse, Turn
from qwenkit.core.tools import Tool
from qwenkit.serve.engine.messages import Refused
from qwenkit.serve.errors import refused
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.openai.chat_format import ChatFormat
from qwenkit.serve.openai.completion import Envelope
from qwenkit.text import chatml
from qwenkit.text.hermes import Hermes
from qwenkit.text.react_calls import ReAct
from qwenkit.text.tools import Calling

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "w", "parameters": CITY}}
NOW = {"type": "function", "function": {"name": "now", "strict": True}}
TOOLS = [WEATHER, NOW]
OURS = (Tool("weather", "w", CITY), Tool("now"))
REPLY = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


def speaking(reply: str, finish: Any = "stop", format: str = "hermes") -> StandInEngine:
    engine = StandInEngine()
    engine.pieces, engine.finish = tuple(reply), finish
    assert engine.card is not None
    engine.card = replace(engine.card, tool_format=format)
    return engine


def ask(engine: StandInEngine, **body: Any) -> Any:
    answer = post(CHAT, engine, **{"messages": HI, "tools": TOOLS, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 400, answer.text
    found: dict[str, Any] = answer.json()["error"]
    assert found["type"] == "invalid_request_error"
    return found


def test_calls_of_a_whole_reply() -> None:
    body = ask(speaking(REPLY), n=2)
    seen = set()
    for choice in body["choices"]:
        message = choice["message"]
        assert choice["finish_reason"] == "tool_calls"
        assert message["content"] == "Let me see."
        calls = message["tool_calls"]
        seen |= {call["id"] for call in calls}
        assert [call["type"] for call in calls] == ["function", "function"]
        assert [call["function"] for call in calls] == [
            {"name": "weather", "arguments": '{"city": "北京"}'},
            {"name": "now", "arguments": "{}"},
        ]
    assert len(seen) == 4
    assert all(id_.startswith("call_") for id_ in seen)


def test_calls_alone_have_no_content_and_text_alone_has_no_calls() -> None:
    message = ask(speaking(REPLY.removeprefix("Let me see.\n")))["choices"][0]["message"]
    assert message["content"] is None
    choice = ask(speaking("Hello <tool_"))["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello <tool_", "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_a_cut_call_is_there_and_is_not_said_to_be_one() -> None:
    choice = ask(speaking(REPLY[:67], "length"))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "'


def test_legacy_functions() -> None:
    function = {"name": "weather", "parameters": CITY}
    body = ask(speaking(REPLY), tools=None, functions=[function], function_call={"name": "weather"})
    choice = body["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": '{"city": "北京"}'}
    assert "tool_calls" not in choice["message"]
    answer = post(CHAT, speaking(REPLY), messages=HI, functions=[function], stream=True)
    *chunks, _ = events(answer.text)
    deltas = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert {"function_call": {"name": "weather", "arguments": ""}} in [one["delta"] for one in deltas]
    assert deltas[-1]["finish_reason"] == "function_call"


def test_the_chunks_of_a_stream() -> None:
    """Name and id first, then arguments as they come, the choices apart."""
    calling = Calling(Hermes(), ToolUse(OURS))
    format = ChatFormat(Envelope("m", 1, "f", "chat", "x"), 2, usage="none", calling=calling)
    opening = [chunk["choices"][0]["delta"] for chunk in format.opening([])]
    assert opening == [{"role": "assistant", "content": None}] * 2
    found: dict[int, list[Any]] = {0: [], 1: []}
    texts = [REPLY, "Just text <"]
    for i in range(0, len(REPLY), 5):
        for index in (0, 1):
            text = texts[index][i : i + 5]
            for chunk in format.chunk(0, Delta(text, index)):
                (choice,) = chunk["choices"]
                assert choice["index"] == index
                found[index].append(choice["delta"])
    ends = [format.chunk(0, Delta("", index, finish_reason="stop")) for index in (0, 1)]
    assert [end[-1]["choices"][0]["finish_reason"] for end in ends] == ["tool_calls", "stop"]
    found[1] += [end["choices"][0]["delta"] for end in ends[1][:-1]]
    assert "".join(delta["content"] for delta in found[1]) == texts[1]
    contents = [delta["content"] for delta in found[0] if "content" in delta]
    assert "".join(contents) == "Let me see."
    calls = [delta["tool_calls"][0] for delta in found[0] if "tool_calls" in delta]
    starts = [call for call in calls if "id" in call]
    assert [(c["index"], c["type"], c["function"]) for c in starts] == [
        (0, "function", {"name": "weather", "arguments": ""}),
        (1, "function", {"name": "now", "arguments": ""}),
    ]
    pieces = [c["function"]["arguments"] for c in calls if c["index"] == 0]
    assert "".join(pieces) == '{"city": "北京"}'
    assert len(pieces) > 3
    assert all(set(c) == {"index", "function"} for c in calls if "id" not in c)


def test_what_the_engine_is_asked() -> None:
    engine = speaking("ok")
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"x"}'}}
    messages = [
        {"role": "system", "content": "s"},
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "wet"}]},
    ]
    ask(engine, messages=messages)
    ours = [
        Message("system", "s"),
        Message("user", "hi"),
        Message("assistant", "", (ToolCall("weather", '{"city":"x"}', "call_1"),)),
        Message("tool", "wet", tool_call_id="call_1"),
    ]
    wish = engine.wishes[-1]
    assert wish.prompt == Hermes().turns(ours, OURS, "unused")
    assert wish.params.grammar == Hermes().grammar(ToolUse(OURS))
    ask(engine, messages=messages, tools=None)
    assert engine.wishes[-1].prompt == Hermes().turns(ours, (), "unused")
    assert engine.wishes[-1].params.grammar is None
    ask(engine, tool_choice="none")
    assert engine.wishes[-1].prompt == (Message("user", "hi"),)
    answer = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}}
    ask(engine, response_format=answer, tool_choice="none")
    assert engine.wishes[-1].params.grammar.kind == "json_schema"
    ask(engine, response_format=answer)
    assert '%json {"type": "integer"} |' in engine.wishes[-1].params.grammar.text


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ({}, ToolChoice()),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ToolChoice(parallel=False)),
        ({"tool_choice": "required"}, ToolChoice("required")),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, ToolChoice.named("now")),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {
                "mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]}}},
            ToolChoice("required", ("now",)),
        ),
    ],
)  # fmt: skip
def test_choices(asked: dict[str, Any], choice: ToolChoice) -> None:
    engine = speaking("ok")
    ask(engine, **asked)
    assert engine.wishes[0].params.grammar == Hermes().grammar(ToolUse(OURS, choice))


def test_results_as_qwen_agent_sends_them() -> None:
    """Its `id` is what others call tool_call_id; beside it, `extra` says the same once more."""
    engine = speaking("ok")
    called = {"function": {"name": "weather", "arguments": '{"city":"x"}'}}
    asked = [{"role": "system", "content": "s"}, *HI]
    messages = [*asked, {"role": "assistant", "tool_calls": [{"id": "call_1", **called}]}]
    result = {"role": "tool", "name": "weather", "content": "wet", "id": "call_1"}
    for more in ({}, {"extra": {"function_id": "call_1"}}, {"tool_call_id": "call_1"}):
        ask(engine, messages=[*messages, {**result, **more}])
        prompt = engine.wishes[-1].prompt
        ours = [
            Message("system", "s"),
            Message("user", "hi"),
            Message("assistant", "", (ToolCall("weather", '{"city":"x"}', "call_1"),)),
            Message("tool", "wet", name="weather", tool_call_id="call_1"),
        ]
        assert prompt == Hermes().turns(ours, OURS, "unused")
    for more, field in (
        ({"tool_call_id": "call_2"}, "id"),
        ({"extra": {"function_id": "call_2"}}, "extra.function_id"),
        ({"extra": {"else": 1}}, "extra.else"),
    ):
        answer = post(CHAT, engine, messages=[*messages, {**result, **more}], tools=TOOLS)
        assert refusal(answer)["param"] == f"messages.3.{field}"


def test_react_continues_the_assistants_turn_after_a_result() -> None:
    engine = speaking(" it is wet\nFinal Answer: Take an umbrella.", format="react")
    messages = [
        *HI,
        {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "name": "weather", "content": "wet"},
    ]
    listed = [{"name": "city", "description": "c", "required": True, "schema": {"type": "string"}}]
    function = {
        "name_for_model": "weather", "name_for_human": "Wetter", "description_for_model": "d",
        "parameters": listed,
    }  # fmt: skip
    body = ask(engine, messages=messages, tools=None, functions=[function])
    assert body["choices"][0]["message"]["content"] == "Take an umbrella."
    prompt = engine.wishes[0].prompt
    assert isinstance(prompt[-1], Turn)
    text = chatml.render_turns(prompt)
    assert text.endswith("\nAction: weather\nAction Input: {}\nObservation: wet\nThought:")
    assert "weather: Call this tool to interact with the Wetter API." in text
    assert json.dumps(listed) in text
    grammar = engine.wishes[0].params.grammar
    assert '"required": ["city"]' in grammar.text
    assert engine.wishes[0].params.stop == ()


def test_the_format_can_be_chosen() -> None:
    engine = speaking("ok")
    body = {"messages": HI, "tools": TOOLS, "settings": {"tool_format": "react"}}
    assert post(CHAT, engine, **body).status_code == 200
    assert engine.wishes[0].params.grammar == ReAct().grammar(ToolUse(OURS))


def test_log_probabilities_go_with_what_is_said() -> None:
    assert ask(speaking(REPLY), logprobs=True)["choices"][0]["finish_reason"] == "tool_calls"


def function(name: str = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


NAMED = {"type": "function", "function": {"name": "nothing"}}
RESULT = {"role": "tool", "content": "4", "tool_call_id": "call_9"}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"tools": [function("a b")]}, "tools.0.function.name", "invalid_value"),
        ({"tools": [function(), function()]}, "tools", "invalid_value"),
        ({"tools": [function(f"f{i}") for i in range(129)]}, "tools", "limit_exceeded"),
        ({"tools": [function(description="x" * 262145)]}, "tools", "limit_exceeded"),
        ({"tools": [function(parameters={"type": "string"})]}, "tools.0.function.parameters",
         "invalid_value"),
        ({"tools": [function(parameters={"$ref": "http://x"})]}, "tools.0.function.parameters",
         "invalid_value"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing_required_parameter"),
        ({"tools": [function(color="red")]}, "tools.0.function.color", "unknown_parameter"),
        ({"tools": TOOLS, "tool_choice": NAMED}, "tool_choice", "invalid_value"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": NAMED}, "tool_choice", "invalid_value"),
        ({"functions": [{"name": "f"}], "tools": TOOLS}, "functions", "invalid_value"),
        ({"functions": [{}]}, "functions.0.name", "invalid_value"),
        ({"functions": [{"name": "f", "parameters": [{"x": 1}]}]}, "functions.0.parameters", "invalid_value"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call", "invalid_value"),
        ({"function_call": {"name": "g"}}, "function_call", "invalid_value"),
        ({"messages": [RESULT]}, "messages.0.tool_call_id", "invalid_value"),
        ({"messages": [*HI, {"role": "tool", "content": "4"}]}, "messages.1.tool_call_id", "invalid_value"),
        ({"messages": [*HI, {"role": "assistant", "content": None}]}, "messages.1.content", "invalid_value"),
        ({"messages": [{**HI[0], "id": "a"}]}, "messages.0.id", "unsupported_parameter"),
        ({"messages": [{**HI[0], "extra": {"function_id": "a"}}]}, "messages.0.extra",
         "unsupported_parameter"),
        ({"messages": [{**HI[0], "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": ""}}]}]},
         "messages.0.tool_calls", "unsupported_parameter"),
        ({"messages": [*HI, {"role": "assistant", "content": "", "tool_calls": [{"id": ""}]}]},
         "messages.1.tool_calls.0.id", "invalid_value"),
        ({"messages": [*HI, {"role": "system", "content": "late"}], "tools": TOOLS}, "messages",
         "invalid_value"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(body: dict[str, Any], param: str, code: str) -> None:
    found = refusal(post(CHAT, **{"messages": HI, **body}))
    assert (found["param"], found["code"]) == (param, code), found


def test_a_schema_that_the_engine_cannot_enforce_is_the_tools_fault() -> None:
    problem = "The Lark grammar cannot be enforced after '\"f\" mid' at #/properties/x: no."
    error = refused(Refused(1, "request", problem))
    assert (error.param, error.code, error.status) == ("tools", "invalid_value", 400)
    assert str(error).startswith("The tools cannot be enforced after")


def test_tokenize_shows_tools_too() -> None:
    asked = []

    class Engine(StandInEngine):
        async def tokenize(self, prompt: Any, *, parse_special: bool) -> tuple[int, ...]:
            asked.append(prompt)
            return (1,)

    assert post("/tokenize", Engine(), messages=HI, tools=TOOLS).json()["count"] == 1
    assert asked == [Hermes().turns([Message("user", "hi")], OURS, "You are a helpful assistant.")]
    assert refusal(post("/tokenize", prompt="a", tools=TOOLS))["param"] == "tools"
    assert Limits().tools == 128
