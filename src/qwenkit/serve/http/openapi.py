"""What /openapi.json says of the replies: every status an operation can answer with, and what comes then.

FastAPI knows the requests; of replies it knows nothing, for they are written by hand (formats).
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from qwenkit.serve.guard.keys import OPEN_PATHS

Schema = dict[str, Any]

_WHY = {
    400: "The request is wrong; `param` names the field.",
    401: "There is no API key, or it is not known.",
    404: "The model is not here.",
    408: "The request took too long to arrive.",
    413: "The body is too large.",
    415: "The body is no JSON by its Content-Type.",
    429: "The server is full, or the client has used up its minute.",
    500: "The engine or the server failed.",
    503: "The engine is loading, restarting, stalled or stopped.",
    504: "The reply was not finished in time.",
}
_POST = (400, 404, 408, 413, 415, 429, 500, 503)
_GET = {
    "/v1/models": (500, 503),
    "/v1/models/{name}": (404, 500, 503),
    "/health": (500,),
    "/ready": (500,),
    "/metrics": (500,),
}
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
_NO_TIME_LIMIT = ("/tokenize", "/detokenize")


def _object(required: dict[str, Any], **optional: Any) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(kind: str) -> Schema:
    return {"type": [kind, "null"]}


_TEXT, _WHOLE, _TRUE = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
_ERROR = _object(
    {
        "error": _object(
            {"message": _TEXT, "type": _TEXT, "param": _or_null("string"), "code": _or_null("string")}
        )
    }
)
_MESSAGES_ERROR = _object({"type": {"const": "error"}, "error": _object({"type": _TEXT, "message": _TEXT})})
_USAGE = _object({"prompt_tokens": _WHOLE, "total_tokens": _WHOLE}, completion_tokens=_WHOLE)
_FINISH = _or_null("string")
_MODEL = _object(
    {"id": _TEXT, "object": {"const": "model"}, "created": _WHOLE, "owned_by": _TEXT}, max_model_len=_WHOLE
)
_MESSAGE = _object({"role": {"const": "assistant"}, "content": _or_null("string")})


def _completion(kind: str, choice: Schema) -> Schema:
    known = {"id": _TEXT, "object": {"const": kind}, "created": _WHOLE, "model": _TEXT}
    return _object({**known, "system_fingerprint": _TEXT, "choices": _list(choice), "usage": _USAGE})


_CHAT_CHOICE = _object({"index": _WHOLE, "message": _MESSAGE, "finish_reason": _FINISH})
_TEXT_CHOICE = _object({"index": _WHOLE, "text": _TEXT, "finish_reason": _FINISH})
_EMBEDDING = _object(
    {"index": _WHOLE, "object": {"const": "embedding"}, "embedding": {"type": ["array", "string"]}}
)
_HEALTH = _object(
    {"status": _TEXT, "reason": _TEXT, "restarts": _WHOLE, "alive_seconds": {"type": "number"},
     "running": _WHOLE, "waiting": _WHOLE}
)  # fmt: skip

REPLIES: dict[str, Schema] = {
    "/v1/chat/completions": _completion("chat.completion", _CHAT_CHOICE),
    "/v1/completions": _completion("text_completion", _TEXT_CHOICE),
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
"""Of status 200; of those in _STREAMS also as a stream."""


def document(app: FastAPI, *, keys: bool) -> Schema:
    """The OpenAPI document. keys: whether the server asks for one."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = found["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= {"Error": _ERROR, "MessagesError": _MESSAGES_ERROR}
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            operation["responses"] = _responses(path, method, keys=keys)
            if keys and path not in OPEN_PATHS:
                operation["security"] = [{"key": []}]
    if keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found


def _responses(path: str, method: str, *, keys: bool) -> Schema:
    statuses = set(_POST) if method == "post" else set(_GET.get(path, (404, 500, 503)))
    if method == "post" and path not in _NO_TIME_LIMIT:
        statuses.add(504)
    if keys and path not in OPEN_PATHS:
        statuses.add(401)
    error = "MessagesError" if path.startswith("/v1/messages") else "Error"  # Anthropic's, or OpenAI's
    found = {"200": _success(path)}
    for status in sorted(statuses):
        found[str(status)] = _response(_WHY[status], {"$ref": f"#/components/schemas/{error}"})
        if status in (429, 503):
            found[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    if path in OPEN_PATHS:
        found["503"] = _response("Not now.", REPLIES[path])
    return found


def _success(path: str) -> Schema:
    if path == "/metrics":
        return {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": _TEXT}}}
    found = _response("The reply.", REPLIES.get(path, {}))
    if path in _STREAMS:
        found["content"]["text/event-stream"] = {"schema": _TEXT}
    return found


def _response(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
