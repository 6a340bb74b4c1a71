"""Requests as one would send them: in the OpenAPI document, for readers and for tools that try them out."""

from __future__ import annotations

from typing import Any

_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": _CITY,
}
_CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Oslo"}'}

RESPONSES: dict[str, Any] = {
    "question": {
        "summary": "A question",
        "value": {"input": "What is the capital of France?", "instructions": "Answer in one sentence."},
    },
    "stream": {
        "summary": "A response as it is written",
        "value": {"input": "Tell a story.", "max_output_tokens": 100, "stream": True},
    },
    "tools": {
        "summary": "What a call has found",
        "value": {
            "input": [
                {"role": "user", "content": "How is the weather in Oslo?"},
                _CALL,
                {"type": "function_call_output", "call_id": "call_1", "output": "rain, 4 °C"},
            ],
            "tools": [_WEATHER],
        },
    },
    "schema": {
        "summary": "An answer of a certain form",
        "value": {
            "input": "What is the capital of France?",
            "text": {"format": {"type": "json_schema", "name": "place", "schema": _CITY}},
        },
    },
}
