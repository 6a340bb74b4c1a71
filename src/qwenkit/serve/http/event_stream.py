"""Server-sent events as OpenAI and Anthropic send them, and noticing that a client has left.

A client that reads slowly stops this stream only: what the engine makes meanwhile is joined (reply).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenkit.serve.errors import ServeError, internal_error
from qwenkit.serve.http import logs
from qwenkit.serve.http.record import record

T = TypeVar("T")

_GRACE_S = 5.0  # for the last event to leave, after a reply's time is over


class StreamStyle(Protocol):
    """Of formats.Format, what is said of events."""

    @property
    def named(self) -> bool: ...
    def failure(self, error: ServeError) -> dict[str, Any]: ...


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


async def unless_left(http: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, giving it up when the client leaves. Raises ClientLeftError then."""
    return await _until(_left(http.receive), work, None)


class EventStream(Response):
    """Sends each of `events` as `data: {json}` and, where they have no names, [DONE] after the last.

    A ServeError from `events` becomes an event that says so; then there is no [DONE], for the reply is not
    whole. style: how both are written. close: called when the stream has ended, however it did. seconds: what
    sending may take at most.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[dict[str, Any]],
        close: Callable[[], None],
        seconds: float,
        style: StreamStyle,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]  # of the empty body
        self._events = events
        self._close = close
        self._seconds = seconds
        self._style = style

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        about = record(scope)
        try:
            await _until(_left(receive), self._send(scope, send), self._seconds + _GRACE_S)
        except ClientLeftError:
            about.left = True
        except asyncio.TimeoutError:  # a client that reads nothing; the connection is closed behind it
            about.code = "client_too_slow"
        finally:
            self._close()

    async def _send(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await self._send_event(send, event)
            if not self._style.named:
                await _send_data(send, "data: [DONE]\n\n")
        except ServeError as error:
            record(scope).code = error.code or str(error.status)
            await self._send_event(send, self._style.failure(error))
        except Exception as error:  # noqa: BLE001  the headers are out: an event is all that can be said
            logs.event("mistake", 40, id=record(scope).id, error=logs.where(error))
            record(scope).code = "500"
            await self._send_event(send, self._style.failure(internal_error()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_event(self, send: Send, event: dict[str, Any]) -> None:
        name = f"event: {event['type']}\n" if self._style.named else ""
        await _send_data(send, f"{name}data: {compact(event)}\n\n")


def compact(value: dict[str, Any]) -> str:
    """JSON without spaces. Raises ValueError for numbers that JSON does not have."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


async def _send_data(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def _until(left: Coroutine[Any, Any, None], work: Coroutine[Any, Any, T], seconds: float | None) -> T:
    gone, working = asyncio.ensure_future(left), asyncio.ensure_future(work)
    try:
        await asyncio.wait([gone, working], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeftError if gone.done() else asyncio.TimeoutError
    finally:
        for task in (gone, working):
            task.cancel()
        await asyncio.gather(gone, working, return_exceptions=True)
