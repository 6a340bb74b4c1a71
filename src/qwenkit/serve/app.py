"""The HTTP application: routes, and what surrounds each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

import qwenkit
from qwenkit.serve import status
from qwenkit.serve.anthropic import routes as routes_messages
from qwenkit.serve.errors import ServeError, on_http_exception, on_serve_error, on_validation_error
from qwenkit.serve.guard.keys import OPEN_PATHS, KeyCheck
from qwenkit.serve.guard.limits import BodyLimit, Limits
from qwenkit.serve.guard.rates import RateLimit
from qwenkit.serve.http.access import Access
from qwenkit.serve.http.openapi import document
from qwenkit.serve.openai import routes_chat, routes_completions, routes_embeddings, routes_models
from qwenkit.serve.page import routes as routes_page
from qwenkit.serve.page.files import PageFiles
from qwenkit.serve.responses import routes as routes_responses
from qwenkit.serve.service import Service

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from qwenkit.serve.http.traces import Traces

_ROUTES = (
    routes_chat,
    routes_completions,
    routes_responses,
    routes_messages,
    routes_embeddings,
    routes_models,
    status,
)


def create_app(service: Service, spans: TracerProvider | None = None) -> FastAPI:
    """The application over `service`; starts its engine with the server and stops it after. spans: where
    those of requests go; shut down in the end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.engine.start()
        try:
            yield
        finally:
            await service.engine.stop()
            if spans is not None:
                await asyncio.to_thread(spans.shutdown)  # sends what is left

    settings = service.settings
    page = PageFiles() if settings.page else None
    around = [Middleware(Access, metrics=service.metrics, traces=_traces(service, spans))]  # outermost first
    if settings.cors_origins:
        around.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_methods=["GET", "POST"],
                allow_headers=[
                    "Authorization",
                    "Content-Type",
                    "X-API-Key",
                    "Anthropic-Version",
                    "X-Request-ID",
                ],
                expose_headers=["X-Request-ID", "Retry-After"],
            )
        )
    around += [
        Middleware(KeyCheck, keys=settings.keys, open=OPEN_PATHS | (page.paths if page else frozenset())),
        *_rates(settings.limits),
        Middleware(BodyLimit, limit=settings.limits.body_bytes, idle=settings.limits.idle_s),
    ]
    app = FastAPI(
        title="qwenkit",
        version=qwenkit.__version__,
        lifespan=lifespan,
        middleware=around,
        docs_url=None,  # its page fetches scripts from elsewhere; /openapi.json stays
        redoc_url=None,
        exception_handlers={
            ServeError: on_serve_error,
            RequestValidationError: on_validation_error,
            HTTPException: on_http_exception,
        },
    )
    app.state.service = service
    for routes in _ROUTES:
        app.include_router(routes.router)
    if page is not None:
        app.include_router(routes_page.router(page))
    app.openapi = cache(lambda: document(app, keys=bool(settings.keys)))  # type: ignore[method-assign]
    return app


def _traces(service: Service, spans: TracerProvider | None) -> Traces | None:
    if spans is None:
        return None
    from qwenkit.serve.http.traces import Traces

    return Traces(spans, lambda: service.names(service.engine.card)[0] if service.engine.card else "unknown")


def _rates(limits: Limits) -> list[Middleware]:
    if not limits.requests_a_minute and not limits.tokens_a_minute:
        return []
    return [Middleware(RateLimit, requests=limits.requests_a_minute, tokens=limits.tokens_a_minute)]
