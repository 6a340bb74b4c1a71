"""Tools through openai-python against a running server of random weights, so calls are demanded."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI
from running_server import RunningServer

FLAG = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
FUNCTION = {"name": "switch", "description": "A switch.", "parameters": FLAG}
ASKED: dict[str, Any] = {
    "model": "gpt-test", "messages": [{"role": "user", "content": "On!"}], "seed": 1, "max_tokens": 400,
    "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required",
}  # fmt: skip


@pytest.fixture
def client(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120, max_retries=0)


def test_whole_streamed_and_helped_say_the_same(client: OpenAI, server: RunningServer) -> None:
    whole = client.chat.completions.create(**ASKED).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.tool_calls is not None
    (call,) = whole.message.tool_calls
    assert call.function.name == "switch"
    assert set(json.loads(call.function.arguments)) == {"on"}
    with client.chat.completions.stream(**ASKED) as stream:
        kinds = {event.type for event in stream}
        helped = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds

    async def ask() -> Any:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120) as other:
            return (await other.chat.completions.create(**ASKED)).choices[0].message

    for message in (helped, asyncio.run(ask())):
        (again,) = message.tool_calls
        assert (again.function.name, again.function.arguments) == ("switch", call.function.arguments)
        assert message.content == whole.message.content

    # A message comes back as it was given, and its result with it.
    result = {"role": "tool", "tool_call_id": helped.tool_calls[0].id, "content": "done"}
    messages = [*ASKED["messages"], helped, result]
    reply = client.chat.completions.create(**{**ASKED, "messages": messages, "tool_choice": "auto"})
    assert reply.choices[0].finish_reason in ("stop", "tool_calls", "length")


def test_legacy_functions_and_refusals(client: OpenAI) -> None:
    legacy = {key: value for key, value in ASKED.items() if not key.startswith("tool")}
    reply = client.chat.completions.create(
        **legacy, functions=[FUNCTION], function_call={"name": "switch"}
    ).choices[0]
    assert reply.finish_reason == "function_call"
    assert reply.message.function_call is not None
    assert reply.message.function_call.name == "switch"
    bad = {"type": "function", "function": {"name": "odd", "parameters": {"properties": {"x": {"not": {}}}}}}
    with pytest.raises(BadRequestError, match="for tool 'odd' at #/properties/x") as refused:
        client.chat.completions.create(**{**ASKED, "tools": [bad]})
    assert refused.value.param == "tools"
