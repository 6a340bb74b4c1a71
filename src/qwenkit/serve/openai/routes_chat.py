"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Body
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.serve.chat.prompt import chat_prompt
from qwenkit.serve.chat.tools import tools_of
from qwenkit.serve.engine.supervisor import Wish
from qwenkit.serve.errors import ServeError
from qwenkit.serve.http.json_body import JSONRoute
from qwenkit.serve.openai.chat_format import ChatFormat
from qwenkit.serve.openai.completion import Envelope
from qwenkit.serve.openai.conversation import conversation
from qwenkit.serve.openai.examples import CHAT
from qwenkit.serve.openai.schemas import ChatRequest
from qwenkit.serve.replies.generation import respond
from qwenkit.serve.service import service

router = APIRouter(route_class=JSONRoute)


@router.post("/v1/chat/completions")
async def chat_completions(
    body: Annotated[ChatRequest, Body(openapi_examples=CHAT)], http: Request
) -> Response:
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
    use = tools_of(body, limits)
    asked = chat_prompt(here, conversation(body.messages), use, body.grammar(limits))
    params = body.sampling(
        limits,
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=asked.grammar,
    )
    envelope = Envelope(name, int(time.time()), here.fingerprint(here.card()), "chat", "chatcmpl")
    return await respond(
        http,
        here,
        [Wish(asked.prompt, params)],
        ChatFormat(
            envelope,
            params.n,
            usage=body.usage(),
            calling=asked.calling,
            legacy=not body.tools and bool(use.tools),
        ),
        stream=bool(body.stream),
    )
