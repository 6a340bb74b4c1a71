"""POST /v1/completions."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.core import Infill
from qwenkit.serve.engine.messages import ModelCard, Prompt
from qwenkit.serve.engine.supervisor import Wish
from qwenkit.serve.errors import ServeError
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.http.json_body import JSONRoute
from qwenkit.serve.openai.completion import Envelope
from qwenkit.serve.openai.examples import COMPLETIONS
from qwenkit.serve.openai.schemas import CompletionRequest
from qwenkit.serve.openai.text_format import TextFormat
from qwenkit.serve.replies.generation import respond
from qwenkit.serve.service import service

router = APIRouter(route_class=JSONRoute)


@router.post("/v1/completions")
async def completions(
    body: Annotated[CompletionRequest, Body(openapi_examples=COMPLETIONS)], http: Request
) -> Response:
    """Continue texts or token ids as they stand, as OpenAI's endpoint of this name.

    With echo, max_tokens may be 0: then only the prompt comes back, and its log probabilities if asked.
    """
    body.refuse_unsupported()
    here = service(http)
    name = here.check_model(body.model)
    limits, echo = here.settings.limits, bool(body.echo)
    prompts = _prompts(body, here.card())
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
    n, logged = body.n or 1, body.logprobs is not None
    ranked = _ranked(body, n, limits)
    logprobs = 0 if ranked and not logged else body.logprobs
    params = body.sampling(limits, logprobs=logprobs, n=body.best_of if ranked else body.n)
    scores = body.logprobs if echo else None
    envelope = Envelope(name, int(time.time()), here.fingerprint(here.card()), "text", "cmpl")
    return await respond(
        http,
        here,
        [Wish(prompt, params, scores, generate) for prompt in prompts],
        TextFormat(envelope, n, echo=echo, logprobs=logged, usage=body.usage(), ranked=ranked),
        stream=bool(body.stream),
    )


def _prompts(body: CompletionRequest, card: ModelCard) -> list[Prompt]:
    prompts = prompts_in(body.prompt)
    if not body.suffix:
        return [*prompts]
    if not card.infills:
        raise ServeError(
            "suffix is not supported: the vocabulary of this model has no tokens for filling in.",
            "Serve a Qwen2.5-Coder, or ask for it in words.",
            code="unsupported_parameter",
            param="suffix",
        )
    if body.echo:
        raise ServeError("suffix and echo do not go together.", code="invalid_value", param="echo")
    return [Infill(prompt, body.suffix) for prompt in prompts]


def _ranked(body: CompletionRequest, n: int, limits: Limits) -> bool:
    """Whether more are to be generated than written. Raises ServeError where that makes no sense."""
    best_of = n if body.best_of is None else body.best_of
    limits.check("best_of", best_of, limits.n, "choices")
    if best_of < n:
        raise ServeError(
            f"best_of is {best_of} and n is {n}: there are not so many to choose from.",
            "Ask for a best_of of at least n.",
            code="invalid_value",
            param="best_of",
        )
    if best_of > n and body.stream:
        raise ServeError(
            "best_of above n cannot be streamed: which are the best is known at the end.",
            "Leave stream or best_of out.",
            code="invalid_value",
            param="best_of",
        )
    return best_of > n


def prompts_in(given: str | list[Any]) -> list[str | tuple[int, ...]]:
    """One or several of them: texts, or token ids."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [tuple(given)]
    return [one if isinstance(one, str) else tuple(one) for one in given]
