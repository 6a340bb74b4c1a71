"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.serve.engine.messages import Embedded
from qwenkit.serve.errors import ServeError
from qwenkit.serve.http.event_stream import ClientLeftError, compact, unless_left
from qwenkit.serve.http.json_body import JSONRoute
from qwenkit.serve.http.record import record
from qwenkit.serve.openai.embeddings_format import embeddings_json
from qwenkit.serve.openai.examples import EMBEDDINGS
from qwenkit.serve.openai.routes_completions import prompts_in
from qwenkit.serve.openai.schemas import EmbeddingRequest
from qwenkit.serve.service import Service, service

router = APIRouter(route_class=JSONRoute)


@router.post("/v1/embeddings")
async def embeddings(
    body: Annotated[EmbeddingRequest, Body(openapi_examples=EMBEDDINGS)], http: Request
) -> Response:
    """Vectors of length 1 for texts or token ids as they stand: the model's last hidden states, pooled."""
    here = service(http)
    name = here.check_model(body.model)
    size, limits = here.card().hidden_size, here.settings.limits
    if body.dimensions is not None and body.dimensions != size:
        raise ServeError(
            f"dimensions={body.dimensions}, but the vectors of this model have {size}.",
            "It was not trained so that a part of a vector makes sense: leave dimensions out.",
            code="unsupported_parameter",
            param="dimensions",
        )
    inputs = prompts_in(body.input)
    limits.check("input", len(inputs), limits.inputs, "inputs")
    with here.admission.places(1):
        try:
            answer = await unless_left(http, _embed(here, inputs, body.pooling or "mean"))
        except ClientLeftError:
            record(http.scope).left = True
            return Response(status_code=499)
    here.metrics.prompt_tokens.inc(answer.prompt_tokens)
    record(http.scope).prompt_tokens = answer.prompt_tokens
    data = await asyncio.to_thread(
        embeddings_json, answer.vectors, as_base64=body.encoding_format == "base64"
    )
    usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
    whole: dict[str, Any] = {"object": "list", "data": data, "model": name, "usage": usage}
    return Response(await asyncio.to_thread(compact, whole), media_type="application/json")


async def _embed(here: Service, inputs: list[Any], pooling: Any) -> Embedded:
    seconds = here.settings.limits.request_s
    try:
        return await asyncio.wait_for(here.engine.embed(inputs, pooling), seconds)
    except asyncio.TimeoutError:
        raise ServeError(
            f"The vectors were not there within {seconds:g} s.",
            "Send fewer inputs at a time, or start the server with a larger --request-timeout.",
            status=504,
            code="request_timeout",
        ) from None
    except ServeError as error:
        if error.status == 400:  # whatever is wrong, it is one of the inputs
            error.param = "input"
        raise
