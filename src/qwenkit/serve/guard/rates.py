"""How many requests and tokens each client may have in a minute. Clients are told apart by their key, and
without keys by their address. Knows what has been used, not what will be: tokens count when they are known.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenkit.serve.errors import ServeError
from qwenkit.serve.guard.keys import OPEN_PATHS, WHICH
from qwenkit.serve.http.record import record

_MOST_CLIENTS = 10_000
"""Remembered; beyond that, who was not seen for longest begins anew."""


class Bucket:
    """Refills evenly to `size` in a minute. May be overdrawn by what was not known before."""

    def __init__(self, size: int, now: float) -> None:
        self._size = size
        self._level = float(size)
        self._at = now

    def take(self, amount: int, now: float) -> None:
        self._level = self.level(now) - amount
        self._at = now

    def level(self, now: float) -> float:
        return min(self._size, self._level + (now - self._at) * self._size / 60)

    def seconds_until(self, level: float, now: float) -> float:
        return max(0.0, (level - self.level(now)) * 60 / self._size)

    def headers(self, what: str, now: float) -> list[tuple[bytes, bytes]]:
        """As OpenAI names them; reset: until it is full."""
        values = {
            "limit": str(self._size),
            "remaining": str(max(0, math.floor(self.level(now)))),
            "reset": f"{self.seconds_until(self._size, now):.3f}s",
        }
        return [(f"x-ratelimit-{name}-{what}".encode(), value.encode()) for name, value in values.items()]


class RateLimit:
    """ASGI middleware: 429 for whoever had more than `requests` or `tokens` in a minute; 0 is no limit.

    Asking how the server is and which model it has is free.
    """

    def __init__(
        self, app: ASGIApp, requests: int, tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._sizes = {name: size for name, size in (("requests", requests), ("tokens", tokens)) if size}
        self._clock = clock
        self._clients: OrderedDict[str, dict[str, Bucket]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        buckets = self._of(_who(scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = [one for name, b in buckets.items() for one in b.headers(name, self._clock())]
                message["headers"] = [*message.get("headers", ()), *told]
            await send(message)

        now = self._clock()
        waits = {name: bucket.seconds_until(1, now) for name, bucket in buckets.items()}
        what = max(waits, key=lambda name: waits[name])
        if waits[what] > 0:
            error = ServeError(
                f"You have used this server's limit of {self._sizes[what]} {what} a minute.",
                f"Try again in {waits[what]:.1f} s.",
                status=429,
                code="rate_limit_exceeded",
                retry_after=math.ceil(waits[what]),
            )
            await error.send(scope, receive, send_with_headers)
            return
        if "requests" in buckets:
            buckets["requests"].take(1, now)
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            if "tokens" in buckets:
                about = record(scope)
                used = (about.prompt_tokens or 0) + (about.completion_tokens or 0)
                buckets["tokens"].take(used, self._clock())

    def _of(self, who: str) -> dict[str, Bucket]:
        now = self._clock()
        found = self._clients.pop(who, None) or {n: Bucket(size, now) for n, size in self._sizes.items()}
        self._clients[who] = found
        while len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)
        return found


def _who(scope: Scope) -> str:
    if (key := scope.get(WHICH)) is not None:
        return f"key {key}"
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if address.version == 6:  # a subscriber has a whole network of them
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
