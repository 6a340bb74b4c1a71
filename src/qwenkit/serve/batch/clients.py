"""Whom a batch asks: the application in this process, or a server somewhere else, by one kind of client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx

from qwenkit.core import RequestError
from qwenkit.serve.app import create_app
from qwenkit.serve.engine.supervisor import Supervisor
from qwenkit.serve.service import Service
from qwenkit.serve.settings import ServeSettings


@asynccontextmanager
async def local_client(
    settings: ServeSettings, say: Callable[[str], None]
) -> AsyncIterator[httpx.AsyncClient]:
    """Requests go through the server's routes without a socket. The engine is a process of its own here too,
    so one that dies is started again. say: told what the model has to say about itself. Raises QwenkitError
    if the model cannot be loaded."""
    engine = Supervisor(settings.engine, step_s=settings.limits.step_s)
    await engine.start()
    try:
        assert engine.loaded is not None
        card = await engine.loaded
        if card.notice:
            say(card.notice)
        transport = httpx.ASGITransport(create_app(Service(settings, engine)), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=None) as client:
            yield client
    finally:
        await engine.stop()


@asynccontextmanager
async def remote_client(
    url: str, key: str | None, *, connections: int, seconds: float
) -> AsyncIterator[httpx.AsyncClient]:
    """url: with or without /v1 at its end. seconds: what an answer may take. Raises RequestError for what is
    no URL."""
    if not url.startswith(("http://", "https://")):
        raise RequestError(f"{url!r:.200} is no URL.", "Give one such as http://127.0.0.1:8000.")
    try:
        client = httpx.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(seconds, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=connections),
        )
    except httpx.InvalidURL as error:
        raise RequestError(
            f"{url!r:.200} is no URL: {error}.", "Give one such as http://127.0.0.1:8000."
        ) from error
    async with client:
        yield client
