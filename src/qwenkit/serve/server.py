"""Runs the application on a port until it is told to end, and lets replies in progress finish then."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from qwenkit.core import QwenkitError
from qwenkit.serve.app import create_app
from qwenkit.serve.engine.supervisor import Supervisor
from qwenkit.serve.errors import engine_unavailable
from qwenkit.serve.guard.connections import Connection, raise_file_limit
from qwenkit.serve.guard.tls import check_tls
from qwenkit.serve.http import logs
from qwenkit.serve.service import Service
from qwenkit.serve.settings import ServeSettings

_FORCED_S = 5  # between the end of replies and the end of connections that still do not close


def serve(
    settings: ServeSettings, *, quiet: bool = False, ready: Callable[[str], object] | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; a second signal does not wait for replies.

    ready: called once with the server's address, on a thread of its own, when the model is there.

    Raises QwenkitError when the port is taken, or when the model cannot be loaded in the first place.
    """
    logs.configure(settings.log_format, settings.log_level)
    supervisor = Supervisor(settings.engine, step_s=settings.limits.step_s)
    service = Service(settings, supervisor)
    check_tls(settings)
    raise_file_limit()
    listener = _listen(settings)
    server = _Server(service)
    host, port = listener.getsockname()[:2]
    scheme = "http" if settings.tls_cert is None else "https"
    where = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    if settings.exposed and not settings.keys:
        _say(f"warning: anyone who reaches {host} may use this server; give keys with --api-key-file.")
    if not quiet:
        _say(f"Listening on {where}, loading the model ...")

    async def run() -> None:
        announcing = asyncio.create_task(_announce(supervisor, server, service, where, quiet, ready))
        try:
            await server.serve(sockets=[listener])
        finally:
            announcing.cancel()

    asyncio.run(run())
    if server.failure is not None:
        raise server.failure


class _Server(uvicorn.Server):
    """uvicorn's server, whose end begins with a word to the routes.

    Draining: no new requests are taken, those in progress go on; after drain_s they end with an error.
    """

    should_exit: bool
    force_exit: bool

    def __init__(self, service: Service) -> None:
        settings = service.settings
        spans = None
        if settings.otel:
            from qwenkit.serve.http.traces import exporting

            spans = exporting()
        super().__init__(
            uvicorn.Config(
                create_app(service, spans),
                log_config=None,
                access_log=False,
                server_header=False,
                http=Connection,
                ws="none",
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
                timeout_keep_alive=settings.limits.idle_s,
                timeout_graceful_shutdown=round(settings.drain_s) + _FORCED_S,
            )
        )
        self.failure: QwenkitError | None = None
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The handler of SIGINT and SIGTERM. uvicorn's own would let the signal end us after the draining."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._service.draining and not self.force_exit:
            return
        self._service.draining = True
        replies = len(self._service.groups)
        logs.event("draining", replies=replies, seconds=self._service.settings.drain_s)
        seconds = 0.0 if self.force_exit else self._service.settings.drain_s
        asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        for group in list(self._service.groups):
            group.fail(engine_unavailable("stopped", "the server is shutting down"))


async def _announce(
    supervisor: Supervisor,
    server: _Server,
    service: Service,
    where: str,
    quiet: bool,
    ready: Callable[[str], object] | None,
) -> None:
    """Say that the model is there; end the server if it never will be."""
    while supervisor.loaded is None:  # the application starts the engine
        await asyncio.sleep(0.01)
    try:
        card = await supervisor.loaded
    except QwenkitError as error:
        server.failure = QwenkitError(error.problem, error.remedy)
        server.should_exit = True
        return
    if not quiet:
        if card.notice:
            _say(card.notice)
        if not card.is_chat:
            _say(f"warning: {card.name} is a base model; it completes text and was not trained to chat.")
        _say(f"Ready: {service.names(card)[0]} at {where}/v1, {card.context_length} tokens of context.")
    if ready is not None:
        await asyncio.to_thread(ready, where)


def _listen(settings: ServeSettings) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # who reads nothing does not keep a connection for ever
            patience = settings.limits.request_s + settings.limits.idle_s
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(patience * 1000))
        listener.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise QwenkitError(
            f"Cannot listen on {settings.host} port {settings.port}: {reason}.",
            "Choose another --host or --port; port 0 takes a free one.",
        ) from error
    return listener


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
