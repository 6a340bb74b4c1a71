"""Connections that do nothing, or that are too many, are closed: nobody keeps the others out by waiting.

uvicorn itself only bounds the time between two requests. Here it is the time until the next request's headers
are complete, counted from the connection or from the end of the reply before; what comes meanwhile does not
lengthen it. Bodies have limits of their own (limits), and so have replies (event_stream).
"""

from __future__ import annotations

import asyncio
import json
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from qwenkit.serve.errors import ServeError

MOST = 4096
"""Connections at once; fewer where the system allows fewer open files."""

_SPARE = 64  # open files for all else


def raise_file_limit() -> None:
    """Let this process open as many files as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 2 * MOST)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Connection(H11Protocol):
    """One client's connection. `timeout_keep_alive` of uvicorn's configuration is the time it may wait."""

    _timer: asyncio.TimerHandle | None = None
    _heard = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > min(MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE):
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._work()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before, self._heard = self.cycle, True
        super().data_received(data)
        if self.cycle is not before:
            self._work()

    def on_response_complete(self) -> None:
        self._wait()
        before = self.cycle
        super().on_response_complete()
        if self.cycle is not before:  # the next request was there already
            self._work()

    def send_400_response(self, msg: str) -> None:
        error = ServeError("The request is not HTTP.", "Send HTTP/1.1.", code="invalid_http")
        self._refuse(error)

    def _wait(self) -> None:
        self._work()
        self._heard = False
        self._timer = self.loop.call_later(self.timeout_keep_alive, self._waited)

    def _work(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _waited(self) -> None:
        if self.transport.get_write_buffer_size():  # it reads nothing: closing would wait for it
            self.transport.abort()
        elif self._heard and self.conn.our_state is h11.IDLE:
            seconds = self.timeout_keep_alive
            problem = f"The request's headers were not complete within {seconds} s."
            self._refuse(ServeError(problem, status=408, code="header_timeout"))
        else:
            self.transport.close()

    def _refuse(self, error: ServeError) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of a reply
            self.transport.close()
            return
        body = json.dumps(error.body()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        start = h11.Response(status_code=error.status, headers=[*headers, ("connection", "close")])
        for event in (start, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _make_room(self) -> None:
        """Give up the connection that has waited longest; this one, if all others are at work."""
        waiting: list[Any] = [one for one in self.connections if getattr(one, "_timer", None) is not None]
        oldest = min(waiting, key=lambda one: one._timer.when(), default=self)
        oldest.transport.abort()
