"""How much a client may ask for at once: counts, sizes and times, each refused by name when exceeded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenkit.serve.errors import ServeError

BODY_SECONDS = 60.0  # a body that takes longer to arrive is given up


@dataclass(frozen=True, kw_only=True)
class Limits:
    """max_queue: prompts that may wait beside those that run. requests_a_minute, tokens_a_minute: of each
    client, 0 is no limit. request_s: a reply's longest time, from arrival to end. idle_s: a connection's
    without a request, and a body's without a byte. step_s: a step's, after which the engine is started again;
    0 never. body_bytes: of a request. prompts: in one completion request. n: choices of one prompt. stops,
    stop_characters: stop strings and the length of each. top_logprobs: alternatives at a token. biases:
    entries of logit_bias, and of stop_token_ids. schema_characters: of a JSON schema, and of all tools.
    inputs: of one request for embeddings. tools: that a reply may call."""

    max_queue: int = 128
    requests_a_minute: int = 0
    tokens_a_minute: int = 0
    request_s: float = 600.0
    idle_s: int = 30
    step_s: float = 300.0
    body_bytes: int = 4 << 20
    prompts: int = 64
    n: int = 16
    stops: int = 16
    stop_characters: int = 1000
    top_logprobs: int = 20
    biases: int = 1024
    inputs: int = 2048
    tools: int = 128
    schema_characters: int = 256 * 1024

    def check(self, param: str, value: int, limit: int, what: str) -> None:
        """Raises ServeError naming the field, its value and the limit."""
        if value > limit:
            raise ServeError(
                f"{param} asks for {value} {what}.",
                f"This server allows at most {limit}.",
                code="limit_exceeded",
                param=param,
            )


class Admission:
    """Counts the prompts in the house. `most` may be raised once the engine says how many it runs."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0
        self._seconds = 1.0  # that a request took lately

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Room for `count` prompts until the end of the block. Raises ServeError 429 if there is none."""
        if count > self.most:
            raise ServeError(
                f"The request has {count} prompts; this server holds {self.most} in all.",
                "Send fewer at a time.",
                code="limit_exceeded",
                param="prompt",
            )
        if self.inside + count > self.most:
            raise ServeError(
                f"{self.inside} requests are running or waiting, as many as this server takes.",
                "Try again later.",
                status=429,
                code="queue_full",
                retry_after=min(30, max(1, round(self._seconds))),
            )
        self.inside += count
        began = time.monotonic()
        try:
            yield
        finally:
            self.inside -= count
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)


class BodyLimit:
    """ASGI middleware: refuses a body that is too large, before or while it arrives, or too slow."""

    def __init__(
        self, app: ASGIApp, limit: int, idle: float = BODY_SECONDS, seconds: float = BODY_SECONDS
    ) -> None:
        self._app = app
        self._limit = limit
        self._idle = idle
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if declared.isdigit() and int(declared) > self._limit:
                raise self._too_large()
            body = await self._read(receive)
        except ServeError as error:
            await error.send(scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size, deadline = 0, time.monotonic() + self._seconds
        while True:
            try:
                left = max(0.0, deadline - time.monotonic())
                message = await asyncio.wait_for(receive(), min(left, self._idle))
            except asyncio.TimeoutError:
                took = self._seconds if left < self._idle else self._idle
                raise ServeError(
                    f"The body took longer than {took:g} s to arrive.",
                    status=408,
                    code="body_timeout",
                ) from None
            if message["type"] != "http.request":  # the client left
                return b"".join(parts)
            size += len(message.get("body", b""))
            if size > self._limit:
                raise self._too_large()
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)

    def _too_large(self) -> ServeError:
        return ServeError(
            f"The body is larger than {self._limit} bytes.",
            "Send less, or start the server with a larger --max-body.",
            status=413,
            code="body_too_large",
        )
