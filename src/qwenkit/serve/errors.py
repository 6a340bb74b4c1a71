"""Failures as an OpenAI client expects them: a status, and {"error": {message, type, param, code}}."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from qwenkit.core import QwenkitError
from qwenkit.serve.engine.messages import Refused
from qwenkit.serve.http.record import record

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}
_ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_TYPE_TRIED = re.compile(r"(str|int|list\[.*|constrained-.*|literal\[.*|tagged-union\[.*|NamedFunction)$")
_LARK = "The Lark grammar"  # how errors of the grammar that tools make begin
_SHOWN = 200  # characters of a client's own word that an error repeats


class ServeError(QwenkitError):
    """A request that gets no reply. status: of HTTP; code: for programs; param: the field that is wrong;
    retry_after: seconds after which trying again makes sense."""

    def __init__(
        self,
        problem: str,
        remedy: str = "",
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(problem, remedy)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """The JSON of the response, and of the event that ends a stream."""
        type_ = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": str(self), "type": type_, "param": self.param, "code": self.code}
        return {"error": error}

    def anthropic_body(self) -> dict[str, Any]:
        """The same as Anthropic's clients expect it."""
        kind = _ANTHROPIC_TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "api_error"
        )
        return {"type": "error", "error": {"type": kind, "message": str(self)}}

    def response(self, scope: Scope) -> JSONResponse:
        """The answer to the request with this scope, whose record learns the code; in Anthropic's shape on
        Anthropic's paths."""
        record(scope).code = self.code or str(self.status)
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        path = scope["path"]
        anthropic = path == _ANTHROPIC_PATH or path.startswith(f"{_ANTHROPIC_PATH}/")
        return JSONResponse(self.anthropic_body() if anthropic else self.body(), self.status, headers)

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application."""
        await self.response(scope)(scope, receive, send)


def internal_error() -> ServeError:
    """A mistake of ours; the log knows more than the client is told."""
    return ServeError("The server made a mistake.", "The log has the details.", status=500)


def engine_unavailable(state: str, reason: str) -> ServeError:
    """The engine cannot take requests now."""
    return ServeError(
        f"The engine is {state}{': ' + reason if reason else ''}.",
        "Try again later; /health tells the state.",
        status=503,
        code=f"engine_{state}",
        retry_after=2,
    )


def refused(message: Refused) -> ServeError:
    """What the engine's process said no to."""
    problem, remedy = message.problem, message.remedy
    if message.kind == "queue_full":
        return ServeError(problem, remedy, status=429, code="queue_full", retry_after=1)
    if message.kind == "engine":
        return ServeError(problem, remedy, status=500, code="engine_error")
    if message.kind == "unsupported":  # of a request that its schema let through: only grammars are
        return ServeError(problem, remedy, code="unsupported_parameter", param="response_format")
    if message.kind == "context_length":
        return ServeError(problem, remedy, code="context_length_exceeded", param=_too_long(problem))
    if problem.startswith(_LARK):  # clients have no other way to one
        problem = "The tools" + problem.removeprefix(_LARK)
        return ServeError(problem, remedy, code="invalid_value", param="tools")
    return invalid(QwenkitError(problem, remedy))


def _too_long(problem: str) -> str:
    return "messages" if problem.startswith("The conversation") else "prompt"


def invalid(error: QwenkitError) -> ServeError:
    """A request the engine's rules forbid; errors of SamplingParams begin with the field's name."""
    named = re.match(r"(?:The )?(\w+)(?: value| token id)?(?:=| contains )", error.problem)
    param = named[1] if named else None
    return ServeError(error.problem, error.remedy, code="invalid_value", param=param)


def invalid_field(param: str, problem: str, remedy: str) -> ServeError:
    """A field whose value cannot be what it is."""
    return ServeError(problem, remedy, code="invalid_value", param=param)


def validation_error(problems: Sequence[Any]) -> ServeError:
    """The first of pydantic's findings, in words; the value itself is not repeated."""
    first = problems[0]
    path = [str(part) for part in first["loc"] if part != "body"]
    # What follows such a part says which of several allowed types was tried, and is no name of a field.
    tried = next((i for i, part in enumerate(path) if i and _TYPE_TRIED.match(part)), len(path))
    param = ".".join(path[:tried])[:_SHOWN] or None
    kind = first["type"]
    if kind == "json_invalid":
        return ServeError("The body is not valid JSON.", "Send one JSON object.", code="invalid_json")
    if kind == "extra_forbidden":
        return ServeError(
            f"Unrecognized request argument supplied: {param}.",
            "Nothing is ignored here: leave it out.",
            code="unknown_parameter",
            param=param,
        )
    if kind == "missing":
        what = f"Missing required parameter: {param}." if param else "The request has no body."
        return ServeError(what, code="missing_required_parameter", param=param)
    return ServeError(f"Invalid value for {param or 'the body'}: {first['msg']}.", code="invalid_value",
                      param=param)  # fmt: skip


async def on_serve_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    return error.response(request.scope)


async def on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return validation_error(error.errors()).response(request.scope)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: unknown paths, wrong methods, bodies it cannot parse."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        path = request.url.path[:_SHOWN]
        missing = ServeError(f"There is no {request.method} {path}.", status=404, code="not_found")
        return missing.response(request.scope)
    response = ServeError(str(error.detail), status=error.status_code).response(request.scope)
    response.headers.update(error.headers or {})
    return response
