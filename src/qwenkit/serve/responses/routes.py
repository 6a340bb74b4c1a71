"""POST /v1/responses, as OpenAI's endpoint of this name, as far as it needs no memory."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.core import Grammar, RequestError, SamplingParams
from qwenkit.serve.chat.prompt import chat_prompt
from qwenkit.serve.engine.supervisor import Wish
from qwenkit.serve.errors import ServeError, invalid
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.http.fields import refuse_unsupported
from qwenkit.serve.http.json_body import JSONRoute
from qwenkit.serve.replies.generation import respond
from qwenkit.serve.responses.examples import RESPONSES
from qwenkit.serve.responses.format import ResponsesFormat
from qwenkit.serve.responses.input import answer, conversation, tools_of
from qwenkit.serve.responses.schemas import LOGPROBS, UNSUPPORTED, ResponsesRequest
from qwenkit.serve.service import service

_OWN_NAMES = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}
"""Of fields that the engine's errors call as the chat endpoint does."""

router = APIRouter(route_class=JSONRoute)


@router.post("/v1/responses")
async def responses(
    body: Annotated[ResponsesRequest, Body(openapi_examples=RESPONSES)], http: Request
) -> Response:
    """The assistant's reply to the whole conversation in `input`; nothing is kept."""
    refuse_unsupported(body, UNSUPPORTED)
    here = service(http)
    name, limits = here.check_model(body.model), here.settings.limits
    use = tools_of(body, limits)
    asked = chat_prompt(here, conversation(body), use, answer(body, limits), fields=("input", "tools"))
    params = _sampling(body, limits, asked.grammar)
    format = ResponsesFormat(name, body, asked.calling.parser())
    try:
        return await respond(http, here, [Wish(asked.prompt, params)], format, stream=bool(body.stream))
    except ServeError as error:
        error.param = _OWN_NAMES.get(error.param or "", error.param)
        raise


def _sampling(body: ResponsesRequest, limits: Limits, grammar: Grammar | None) -> SamplingParams:
    logged = LOGPROBS in (body.include or ())
    if body.top_logprobs and not logged:
        raise ServeError(
            f"top_logprobs needs include to have {LOGPROBS}.", code="invalid_value", param="top_logprobs"
        )
    limits.check("top_logprobs", body.top_logprobs or 0, limits.top_logprobs, "alternatives")
    if body.max_output_tokens is not None and body.max_output_tokens < 1:
        raise ServeError(
            f"max_output_tokens={body.max_output_tokens}.", "It must be at least 1.",
            code="invalid_value", param="max_output_tokens",
        )  # fmt: skip
    try:
        return SamplingParams(
            temperature=body.temperature,
            top_p=body.top_p,
            max_tokens=body.max_output_tokens,
            logprobs=(body.top_logprobs or 0) if logged else None,
            grammar=grammar,
        )
    except RequestError as error:
        raise invalid(error) from error
