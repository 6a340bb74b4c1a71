"""Function calling against the original server's conversions."""

from __future__ import annotations

import pytest

from qwenkit.core import Message, RequestError, ToolCall
from qwenkit.text import react

WEATHER = {
    "name": "get_weather",
    "description": "Get weather.",
    "parameters": {"type": "object", "x": "城市"},
}


def test_all_golden_conversations(golden, to_message):
    assert len(golden["parse_messages"]) == 16
    errors = 0
    for case in golden["parse_messages"]:
        messages = [to_message(message) for message in case["messages"]]
        if "error" in case:
            with pytest.raises(RequestError) as caught:
                react.parse_messages(messages, case["functions"])
            assert caught.value.problem == case["error"][1]
            errors += 1
            continue
        got = react.parse_messages(messages, case["functions"])
        assert got.system == case["system"]
        assert [list(turn) for turn in got.history] == case["history"]
        assert (got.query is None) == (case["query"] == "<continue last assistant turn>")
        assert got.query in (None, case["query"])
    assert errors == 5


def test_all_golden_replies(golden):
    assert len(golden["parse_response"]) == 11
    for case in golden["parse_response"]:
        expected = case["message"]
        call = expected["function_call"]
        got = react.parse_response(case["reply"])
        assert got.role == "assistant"
        assert got.content == expected["content"]
        assert [(c.name, c.arguments) for c in got.tool_calls] == (
            [(call["name"], call["arguments"])] if call else []
        )
        assert bool(got.tool_calls) == (case["finish_reason"] == "function_call")


def test_an_observation_before_the_call_does_not_hide_it():
    """The original looks for the first "Observation:" anywhere and then misses the call."""
    got = react.parse_response("x\nObservation: y\nThought: t\nAction: f\nAction Input: {}")
    assert got.tool_calls == (ToolCall("f", "{}"),)


def test_the_two_wordings():
    functions = [WEATHER, {**WEATHER, "name": "b"}]
    apis = react.react_prompt("q {x}", functions)
    assert (
        "access to the following APIs:\n\nget_weather: Call this tool to interact with the get_weather API. "
        in apis
    )
    assert 'Get weather. Parameters: {"type": "object", "x": "城市"}\n\nb: Call' in apis
    assert "one of [get_weather, b]\n" in apis
    assert apis.endswith("Begin!\n\nQuestion: q {x}")
    tools = react.react_prompt("q", functions, noun="tools", args_format="json")
    assert "following tools:" in tools
    assert '"城市"} Format the arguments as a JSON object.\n' in tools
    assert "one of [get_weather,b]\n" in tools
    assert "triple backticks (`)" in react.react_prompt("q", functions, args_format="code")


@pytest.mark.parametrize("function", [{"name": "f"}, {"parameters": {}}, {"name": "", "parameters": {}}])
def test_incomplete_functions(function):
    with pytest.raises(RequestError, match=r"functions\[0\] has no"):
        react.react_prompt("q", [function])


def test_tool_messages_are_function_messages():
    messages = [
        Message("user", "a"),
        Message("assistant", "", (ToolCall("f", "{}", id="1"),)),
        Message("tool", "42", tool_call_id="1"),
    ]
    got = react.parse_messages(messages, [WEATHER])
    assert got.query is None
    assert got.history[0][1] == "Thought: \nAction: f\nAction Input: {}\nObservation: 42\nThought:"


def test_two_calls_in_one_message_are_refused():
    calls = (ToolCall("f", "{}"), ToolCall("g", "{}"))
    with pytest.raises(RequestError, match="Message 1 has 2 tool calls"):
        react.parse_messages([Message("user", "a"), Message("assistant", "", calls)])


def test_the_default_system_prompt_can_differ():
    assert (
        react.parse_messages([Message("user", "a")], default_system="You are Qwen.").system == "You are Qwen."
    )
    assert react.parse_messages([Message("system", ""), Message("user", "a")]).system == ""
