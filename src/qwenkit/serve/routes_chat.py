"""POST /v1/chat/completions."""

from __future__ import annotations

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.core import Message
from qwenkit.serve.errors import ServeError
from qwenkit.serve.formats import ChatFormat, Envelope
from qwenkit.serve.generation import respond
from qwenkit.serve.json_body import JSONRoute
from qwenkit.serve.schemas import ChatMessage, ChatRequest
from qwenkit.serve.service import service
from qwenkit.serve.supervisor import Wish

router = APIRouter(route_class=JSONRoute)

_SILENT = ("name", "refusal", "tool_calls", "tool_call_id", "function_call", "audio", "annotations")


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, http: Request) -> Response:
    """The assistant's next turn after `messages`, as OpenAI's endpoint of this name."""
    body.refuse_unsupported()
    here = service(http)
    name = here.check_model(body.model)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ServeError(
            "max_tokens and max_completion_tokens are two names of one thing.", "Give one of them.",
            code="invalid_value", param="max_completion_tokens",
        )  # fmt: skip
    if body.top_logprobs is not None and not body.logprobs:
        raise ServeError(
            "top_logprobs needs logprobs.",
            "Set logprobs to true.",
            code="invalid_value",
            param="top_logprobs",
        )
    limits = here.settings.limits
    limits.check("top_logprobs", body.top_logprobs or 0, limits.top_logprobs, "alternatives")
    params = body.sampling(
        limits,
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=body.grammar(limits),
    )
    envelope = Envelope(name, int(time.time()), here.fingerprint(here.card()), "chat", "chatcmpl")
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return await respond(
        http,
        here,
        [Wish(conversation(body.messages), params)],
        ChatFormat(envelope, params.n, usage=usage),
        stream=bool(body.stream),
        usage=usage,
    )


def conversation(messages: list[ChatMessage]) -> tuple[Message, ...]:
    """Our messages of theirs. Raises ServeError naming the field of what cannot be said to the model."""
    return tuple(_message(i, message) for i, message in enumerate(messages))


def _message(i: int, message: ChatMessage) -> Message:
    for field in _SILENT:
        if getattr(message, field) not in (None, [], ""):
            raise ServeError(
                f"messages.{i}.{field} is not supported.", "Leave it out.",
                code="unsupported_parameter", param=f"messages.{i}.{field}",
            )  # fmt: skip
    if message.role in ("tool", "function"):
        raise ServeError(
            f"messages.{i} has role {message.role!r}. Tool calls are not served yet.",
            code="unsupported_parameter",
            param=f"messages.{i}.role",
        )
    if message.content is None:
        raise ServeError(
            f"messages.{i}.content is null.",
            "Give a text.",
            code="invalid_value",
            param=f"messages.{i}.content",
        )
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    return Message(role, text)
