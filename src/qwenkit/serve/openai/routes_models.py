"""GET /v1/models, POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.requests import Request

from qwenkit.core import ToolChoice
from qwenkit.serve.chat.prompt import chat_prompt
from qwenkit.serve.chat.tools import function_tools, use_of
from qwenkit.serve.engine.messages import Prompt
from qwenkit.serve.errors import ServeError
from qwenkit.serve.http.json_body import JSONRoute
from qwenkit.serve.openai.conversation import conversation
from qwenkit.serve.openai.examples import DETOKENIZE, TOKENIZE
from qwenkit.serve.openai.schemas import DetokenizeRequest, TokenizeRequest
from qwenkit.serve.service import Service, service

router = APIRouter(route_class=JSONRoute)


@router.get("/v1/models")
async def models(http: Request) -> dict[str, Any]:
    """The model, once under each of its names."""
    here = service(http)
    return {"object": "list", "data": [_model(here, name) for name in here.names(here.card())]}


@router.get("/v1/models/{name:path}")
async def model(name: str, http: Request) -> dict[str, Any]:
    """One of them; 404 for any other name."""
    here = service(http)
    return _model(here, here.check_model(name))


@router.post("/tokenize")
async def tokenize(
    body: Annotated[TokenizeRequest, Body(openapi_examples=TOKENIZE)], http: Request
) -> dict[str, Any]:
    """Token ids of a text, or of messages and tools with the chat template around them."""
    here = service(http)
    here.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ServeError("Give prompt or messages, one of them.", code="invalid_value", param="prompt")
    if body.prompt is not None and body.tools:
        raise ServeError("tools need messages.", "Leave them out.", code="invalid_value", param="tools")
    prompt: Prompt = body.prompt or ""
    if body.messages is not None:
        tools, limits = function_tools(body.tools or ()), here.settings.limits
        use = use_of(tools, ToolChoice(), limits, "tools", "tools")
        prompt = chat_prompt(here, conversation(body.messages), use).prompt
    with here.admission.places(1):
        ids = await here.engine.tokenize(prompt, parse_special=body.parse_special)
    return {"count": len(ids), "max_model_len": here.card().context_length, "tokens": list(ids)}


@router.post("/detokenize")
async def detokenize(
    body: Annotated[DetokenizeRequest, Body(openapi_examples=DETOKENIZE)], http: Request
) -> dict[str, Any]:
    """The text of token ids, special tokens included."""
    here = service(http)
    here.check_model(body.model)
    with here.admission.places(1):
        return {"prompt": await here.engine.detokenize(body.tokens)}


def _model(here: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": here.created,
        "owned_by": "qwenkit",
        "root": here.card().name,
        "parent": None,
        "max_model_len": here.card().context_length,
    }
