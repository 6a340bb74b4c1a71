"""Around every request: its id, its line in the log, its place in metrics and traces, and the last resort."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenkit.serve.errors import internal_error
from qwenkit.serve.http import logs
from qwenkit.serve.http.metrics import Metrics
from qwenkit.serve.http.record import KEY, Record

if TYPE_CHECKING:
    from qwenkit.serve.http.traces import Traces

_UNINTERESTING = ("/health", "/ready", "/metrics", "/assets/{name}")
_HARMLESS_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Access:
    """ASGI middleware. A client's X-Request-ID is kept if it is harmless, otherwise made here. traces: where
    they were asked for."""

    def __init__(self, app: ASGIApp, metrics: Metrics, traces: Traces | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        harmless = given if _HARMLESS_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        about = scope[KEY] = Record(harmless.decode())
        began, began_ns = time.monotonic(), time.time_ns()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                about.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", harmless)]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001  the client is told, and the server goes on
            logs.event("mistake", logging.ERROR, id=about.id, error=logs.where(error))
            if not about.status:
                await internal_error().send(scope, receive, send_with_id)
        finally:
            self._note(scope, about, time.monotonic() - began, began_ns)

    def _note(self, scope: Scope, about: Record, seconds: float, began_ns: int) -> None:
        template = getattr(scope.get("route"), "path", None)  # the path is the client's word
        route = template or "other"
        metrics = self._metrics
        metrics.requests.labels(route, str(about.status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        if about.left:
            metrics.disconnects.inc()
        if about.code is not None:
            metrics.rejections.labels(about.code).inc()
        logs.event(
            "request",
            logging.DEBUG if route in _UNINTERESTING else logging.INFO,
            id=about.id,
            method=scope["method"],
            path=scope["path"][:200],
            status=about.status or None,
            ms=round(seconds * 1000, 1),
            prompt_tokens=about.prompt_tokens,
            completion_tokens=about.completion_tokens,
            error=about.code,
            left=about.left or None,
        )
        if self._traces is not None and route not in _UNINTERESTING:
            self._traces.add(scope, about, template, began_ns, began_ns + round(seconds * 1e9))
