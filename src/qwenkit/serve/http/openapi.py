"""What /openapi.json says of the replies: every status an operation can answer with, and what comes then.

FastAPI knows the requests; of replies it knows nothing, for they are written by hand (formats).
"""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from qwenkit.serve.guard.keys import OPEN_PATHS
from qwenkit.serve.http.reply_schemas import ERROR, EVENTS, MESSAGES_ERROR, REPLIES, Schema

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
_NO_TIME_LIMIT = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")


def document(app: FastAPI, *, keys: bool) -> Schema:
    """The OpenAPI document. keys: whether the server asks for one."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = found["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= {"Error": ERROR, "MessagesError": MESSAGES_ERROR}
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
        text = {"text/plain": {"schema": {"type": "string"}}}
        return {"description": "Prometheus' text format.", "content": text}
    found = _response("The reply.", REPLIES.get(path, {}))
    if path in EVENTS:
        found["content"]["text/event-stream"] = {"schema": EVENTS[path]}
    return found


def _response(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
