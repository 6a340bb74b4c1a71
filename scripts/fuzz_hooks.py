"""For fuzz_api: makes of requests that are right by their schema more that get a reply.

Without this nearly every one asks for a model that is not there, and nothing else is tried.
"""

from __future__ import annotations

from typing import Any

import schemathesis

_NULL_CONTENT = ("/v1/chat/completions", "/tokenize")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Leave the name of a model out, ask for short replies, say something where content may be null (beside
    calls only), and write 1.0 as 1, which is the same to a schema. What is wrong stays so."""
    body = _whole(body)
    if isinstance(body, dict):
        if isinstance(body.get("model"), str):
            del body["model"]
        if isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 8:
            body["max_tokens"] = 8
        messages = body.get("messages") if context.operation.path in _NULL_CONTENT else None
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, dict) and message.get("content") is None:
                message["content"] = "Hi."
    return body


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(inside) for name, inside in value.items()}
    if isinstance(value, list):
        return [_whole(inside) for inside in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
