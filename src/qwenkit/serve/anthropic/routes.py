"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic's endpoints of these names."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.core import Grammar, RequestError, SamplingParams, Turn
from qwenkit.serve.anthropic.conversation import conversation, tools_of
from qwenkit.serve.anthropic.examples import COUNT_TOKENS, MESSAGES
from qwenkit.serve.anthropic.format import AnthropicFormat
from qwenkit.serve.anthropic.schemas import UNSUPPORTED, Conversation, CountTokensRequest, MessagesRequest
from qwenkit.serve.chat.answers import schema_grammar
from qwenkit.serve.chat.prompt import ChatPrompt, chat_prompt
from qwenkit.serve.engine.supervisor import Wish
from qwenkit.serve.errors import ServeError, invalid, invalid_field
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.http.fields import refuse_unsupported
from qwenkit.serve.http.json_body import JSONRoute
from qwenkit.serve.replies.generation import respond
from qwenkit.serve.service import Service, service

VERSIONS = ("2023-06-01", "2026-10-21")
"""The later one takes no temperature, top_p and top_k at Anthropic's; here they work in both."""

router = APIRouter(route_class=JSONRoute)


@router.post("/v1/messages")
async def messages(
    body: Annotated[MessagesRequest, Body(openapi_examples=MESSAGES)], http: Request
) -> Response:
    """The assistant's next turn, or, where the last message is the assistant's, the rest of it."""
    _check_version(http)
    refuse_unsupported(body, UNSUPPORTED)
    here = service(http)
    name, limits = here.check_model(body.model), here.settings.limits
    asked = _prompt(here, body)
    params = _sampling(body, limits, asked.grammar)
    format = AnthropicFormat(name, asked.calling.parser())
    return await respond(http, here, [Wish(asked.prompt, params)], format, stream=bool(body.stream))


@router.post("/v1/messages/count_tokens")
async def count_tokens(
    body: Annotated[CountTokensRequest, Body(openapi_examples=COUNT_TOKENS)], http: Request
) -> dict[str, Any]:
    """How many tokens the conversation has, template and tools included."""
    _check_version(http)
    refuse_unsupported(body, UNSUPPORTED)
    here = service(http)
    here.check_model(body.model)
    prompt = _prompt(here, body).prompt
    with here.admission.places(1):
        return {"input_tokens": len(await here.engine.tokenize(prompt, parse_special=False))}


def _prompt(here: Service, body: Conversation) -> ChatPrompt:
    limits = here.settings.limits
    said, use = conversation(body), tools_of(body, limits)
    wanted = body.output_config.format if body.output_config else None
    answer = None if wanted is None else schema_grammar(wanted.schema_, limits, "output_config.format")
    asked = chat_prompt(here, said, use, answer)
    if said[-1].role != "assistant" or said[-1].tool_calls:
        return asked
    if use.callable or answer is not None:
        raise ServeError(
            "The last message is the assistant's, and there are tools or an output_config.format.",
            "What holds for a whole reply cannot be enforced on the rest of one: end with a user message.",
            code="invalid_value",
            param="messages",
        )
    try:
        turns: tuple[Turn, ...] = asked.calling.turns(said, here.card().default_system)
    except RequestError as error:
        raise invalid_field("messages", error.problem, error.remedy) from error
    return replace(asked, prompt=(*turns[:-1], replace(turns[-1], open=True)))


def _sampling(body: MessagesRequest, limits: Limits, grammar: Grammar | None) -> SamplingParams:
    stops = tuple(body.stop_sequences or ())
    limits.check("stop_sequences", len(stops), limits.stops, "stop strings")
    limits.check("stop_sequences", max(map(len, stops), default=0), limits.stop_characters, "characters")
    try:
        return SamplingParams(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            max_tokens=body.max_tokens,
            stop=stops,
            grammar=grammar,
        )
    except RequestError as error:
        raise invalid(error) from error


def _check_version(http: Request) -> None:
    """The header may be missing; another version may have other shapes."""
    asked = http.headers.get("anthropic-version")
    if asked is not None and asked not in VERSIONS:
        raise ServeError(
            f"anthropic-version is {asked[:100]!r}.", f"This server speaks {' and '.join(VERSIONS)}.",
            code="invalid_value", param="anthropic-version",
        )  # fmt: skip
