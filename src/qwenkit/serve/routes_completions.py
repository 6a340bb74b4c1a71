"""POST /v1/completions."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.serve.errors import ServeError
from qwenkit.serve.formats import Envelope, TextFormat
from qwenkit.serve.generation import respond
from qwenkit.serve.json_body import JSONRoute
from qwenkit.serve.schemas import CompletionRequest
from qwenkit.serve.service import service
from qwenkit.serve.supervisor import Wish

router = APIRouter(route_class=JSONRoute)


@router.post("/v1/completions")
async def completions(body: CompletionRequest, http: Request) -> Response:
    """Continue texts or token ids as they stand, as OpenAI's endpoint of this name.

    With echo, max_tokens may be 0: then only the prompt comes back, and its log probabilities if asked.
    """
    body.refuse_unsupported()
    here = service(http)
    name = here.check_model(body.model)
    limits, echo = here.settings.limits, bool(body.echo)
    prompts = prompts_in(body.prompt)
    limits.check("prompt", len(prompts), limits.prompts, "prompts")
    limits.check("logprobs", body.logprobs or 0, limits.top_logprobs, "alternatives")
    generate = body.max_tokens != 0
    if not generate and not echo:
        raise ServeError(
            "max_tokens is 0 and echo is off: there is nothing to answer.", "Give max_tokens of at least 1.",
            code="invalid_value", param="max_tokens",
        )  # fmt: skip
    if not generate:
        body = body.model_copy(update={"max_tokens": None})
    params = body.sampling(limits, logprobs=body.logprobs)
    scores = body.logprobs if echo else None
    envelope = Envelope(name, int(time.time()), here.fingerprint(here.card()), "text", "cmpl")
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    logged = body.logprobs is not None
    return await respond(
        http,
        here,
        [Wish(prompt, params, scores, generate) for prompt in prompts],
        TextFormat(envelope, params.n, echo=echo, logprobs=logged, usage=usage),
        stream=bool(body.stream),
        usage=usage,
    )


def prompts_in(given: str | list[Any]) -> list[str | tuple[int, ...]]:
    """One or several of them: texts, or token ids."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [tuple(given)]
    return [one if isinstance(one, str) else tuple(one) for one in given]
