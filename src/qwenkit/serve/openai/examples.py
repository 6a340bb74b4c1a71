"""Requests as one would send them: in the OpenAPI document, for readers and for tools that try them out."""

from __future__ import annotations

from typing import Any

Examples = dict[str, Any]

_QUESTION = {"role": "user", "content": "What is the capital of France?"}
_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
_WEATHER = {"name": "weather", "description": "The weather in a city.", "parameters": _CITY}

CHAT: Examples = {
    "question": {
        "summary": "A question",
        "value": {"messages": [_QUESTION], "max_tokens": 100, "temperature": 0.7, "seed": 1},
    },
    "stream": {
        "summary": "A reply as it is written",
        "value": {
            "messages": [{"role": "system", "content": "Answer in one sentence."}, _QUESTION],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
    "tools": {
        "summary": "A tool that may be called",
        "value": {
            "messages": [{"role": "user", "content": "How is the weather in Oslo?"}],
            "tools": [{"type": "function", "function": _WEATHER}],
        },
    },
    "schema": {
        "summary": "An answer of a certain form",
        "value": {
            "messages": [_QUESTION],
            "response_format": {"type": "json_schema", "json_schema": {"name": "place", "schema": _CITY}},
        },
    },
}

COMPLETIONS: Examples = {
    "text": {"summary": "A text to continue", "value": {"prompt": "Once upon a time", "max_tokens": 50}},
    "several": {
        "summary": "Several texts, each twice",
        "value": {"prompt": ["One, two,", "A, B,"], "n": 2, "max_tokens": 8, "stop": ["\n"]},
    },
    "likelihood": {
        "summary": "How likely a text is",
        "value": {"prompt": "Paris is in France.", "max_tokens": 0, "echo": True, "logprobs": 1},
    },
}

EMBEDDINGS: Examples = {
    "texts": {"summary": "Vectors of two texts", "value": {"input": ["The sky is blue.", "天是蓝的。"]}},
}

TOKENIZE: Examples = {
    "text": {"summary": "A text", "value": {"prompt": "Once upon a time"}},
    "messages": {"summary": "A conversation", "value": {"messages": [_QUESTION]}},
}

DETOKENIZE: Examples = {"tokens": {"summary": "Three tokens", "value": {"tokens": [12522, 5193, 264]}}}
