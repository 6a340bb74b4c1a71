"""Requests as one would send them: in the OpenAPI document, for readers and for tools that try them out."""

from __future__ import annotations

from typing import Any

_QUESTION = {"role": "user", "content": "What is the capital of France?"}
_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_WEATHER = {"name": "weather", "description": "The weather in a city.", "input_schema": _CITY}
_CALLED = [
    {"role": "user", "content": "How is the weather in Oslo?"},
    {
        "role": "assistant",
        "content": [{"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Oslo"}}],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "rain, 4 °C"}],
    },
]

MESSAGES: dict[str, Any] = {
    "question": {"summary": "A question", "value": {"max_tokens": 100, "messages": [_QUESTION]}},
    "stream": {
        "summary": "A reply as it is written",
        "value": {
            "max_tokens": 100,
            "system": "Answer in one sentence.",
            "messages": [_QUESTION],
            "stream": True,
        },
    },
    "tools": {
        "summary": "What a call has found",
        "value": {"max_tokens": 100, "messages": _CALLED, "tools": [_WEATHER]},
    },
    "rest": {
        "summary": "The rest of a reply",
        "value": {
            "max_tokens": 20,
            "messages": [_QUESTION, {"role": "assistant", "content": "The capital of France is"}],
        },
    },
}

COUNT_TOKENS: dict[str, Any] = {
    "conversation": {
        "summary": "A conversation and its tools",
        "value": {"messages": [_QUESTION], "tools": [_WEATHER]},
    },
}
