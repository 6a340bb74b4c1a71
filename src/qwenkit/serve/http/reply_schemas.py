"""What replies look like, as JSON Schemas: whole ones, events of streams, errors.

Bodies and events are written by hand (formats), so this is too; fields that are always there are `required`.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def _object(required: dict[str, Any], **optional: Any) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(kind: str) -> Schema:
    return {"type": [kind, "null"]}


_TEXT, _WHOLE, _TRUE = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
ERROR = _object(
    {
        "error": _object(
            {"message": _TEXT, "type": _TEXT, "param": _or_null("string"), "code": _or_null("string")}
        )
    }
)
MESSAGES_ERROR = _object({"type": {"const": "error"}, "error": _object({"type": _TEXT, "message": _TEXT})})
_USAGE = _object({"prompt_tokens": _WHOLE, "total_tokens": _WHOLE}, completion_tokens=_WHOLE)
_FINISH = _or_null("string")
_MODEL = _object(
    {"id": _TEXT, "object": {"const": "model"}, "created": _WHOLE, "owned_by": _TEXT}, max_model_len=_WHOLE
)
_MESSAGE = _object({"role": {"const": "assistant"}, "content": _or_null("string")})


def _completion(kind: str, choice: Schema) -> Schema:
    known = {"id": _TEXT, "object": {"const": kind}, "created": _WHOLE, "model": _TEXT}
    return _object({**known, "system_fingerprint": _TEXT, "choices": _list(choice), "usage": _USAGE})


def _chunk(kind: str, choice: Schema) -> Schema:
    known = {"id": _TEXT, "object": {"const": kind}, "created": _WHOLE, "model": _TEXT}
    usage = {"anyOf": [_USAGE, {"type": "null"}]}
    return _object({**known, "system_fingerprint": _TEXT, "choices": _list(choice)}, usage=usage)


def _json(schema: Schema) -> Schema:
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}


def _unnamed(chunk: Schema) -> Schema:
    """The last is no JSON."""
    return _object({"data": {"anyOf": [{"const": "[DONE]"}, _json({"anyOf": [chunk, ERROR]})]}})


def _named(data: Schema) -> Schema:
    return _object({"event": _TEXT, "data": _json(data)})


_CHAT_CHOICE = _object({"index": _WHOLE, "message": _MESSAGE, "finish_reason": _FINISH})
_CHAT_DELTA = _object({"index": _WHOLE, "delta": {"type": "object"}, "finish_reason": _FINISH})
_TEXT_CHOICE = _object({"index": _WHOLE, "text": _TEXT, "finish_reason": _FINISH})
_EMBEDDING = _object(
    {"index": _WHOLE, "object": {"const": "embedding"}, "embedding": {"type": ["array", "string"]}}
)
_RESPONSE = _object(
    {"id": _TEXT, "object": {"const": "response"}, "created_at": _WHOLE, "status": _TEXT, "model": _TEXT,
     "output": _list(_object({"type": _TEXT, "id": _TEXT, "status": _TEXT}))},
    usage={"anyOf": [_object({"input_tokens": _WHOLE, "output_tokens": _WHOLE}), {"type": "null"}]},
)  # fmt: skip
_MESSAGES_REPLY = _object(
    {"id": _TEXT, "type": {"const": "message"}, "role": {"const": "assistant"}, "model": _TEXT,
     "content": _list(_object({"type": _TEXT})), "stop_reason": _or_null("string"),
     "stop_sequence": _or_null("string"),
     "usage": _object({"input_tokens": _WHOLE, "output_tokens": _WHOLE})}
)  # fmt: skip
_HEALTH = _object(
    {"status": _TEXT, "reason": _TEXT, "restarts": _WHOLE, "alive_seconds": {"type": "number"},
     "running": _WHOLE, "waiting": _WHOLE}
)  # fmt: skip

REPLIES: dict[str, Schema] = {
    "/v1/chat/completions": _completion("chat.completion", _CHAT_CHOICE),
    "/v1/completions": _completion("text_completion", _TEXT_CHOICE),
    "/v1/responses": _RESPONSE,
    "/v1/messages": _MESSAGES_REPLY,
    "/v1/messages/count_tokens": _object({"input_tokens": _WHOLE}),
    "/v1/embeddings": _object(
        {"object": {"const": "list"}, "model": _TEXT, "data": _list(_EMBEDDING), "usage": _USAGE}
    ),
    "/v1/models": _object({"object": {"const": "list"}, "data": _list(_MODEL)}),
    "/v1/models/{name}": _MODEL,
    "/tokenize": _object({"count": _WHOLE, "max_model_len": _WHOLE, "tokens": _list(_WHOLE)}),
    "/detokenize": _object({"prompt": _TEXT}),
    "/health": _HEALTH,
    "/ready": _object({"ready": _TRUE, "draining": _TRUE}),
}
"""Of status 200, by path."""

EVENTS: dict[str, Schema] = {
    "/v1/chat/completions": _unnamed(_chunk("chat.completion.chunk", _CHAT_DELTA)),
    "/v1/completions": _unnamed(_chunk("text_completion", _TEXT_CHOICE)),
    "/v1/responses": _named(_object({"type": _TEXT, "sequence_number": _WHOLE}, response=_RESPONSE)),
    "/v1/messages": _named(_object({"type": _TEXT})),
}
"""One event of a stream, by path, as an object of its fields. OpenAPI 3.2 has `itemSchema` for it; in 3.1 who
knows events at all reads `schema` so."""
