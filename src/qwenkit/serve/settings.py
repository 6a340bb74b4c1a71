"""How a server is started: everything the command line says, checked."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from qwenkit.serve.engine.messages import EngineConfig
from qwenkit.serve.guard.keys import Keys
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.http.logs import LogFormat
from qwenkit.text.tools import ToolFormatName


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """names: what clients may call the model beside its own name; the first is the one it answers with. port
    0 takes a free one. drain_s: how long replies in progress may go on after a request to end. tls_cert,
    tls_key: PEM files, together or not at all. tool_format: how tools are shown to the model and called; auto
    is what it was trained on. cors_origins: web pages that may ask; none by default, "*" for
    all. page: serve the chat page at "/". otel: send traces (extra `otel`)."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ()
    keys: Keys = field(default_factory=Keys)
    limits: Limits = field(default_factory=Limits)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    cors_origins: tuple[str, ...] = ()
    page: bool = True
    tool_format: ToolFormatName = "auto"
    drain_s: float = 30.0
    otel: bool = False
    log_format: LogFormat = "text"
    log_level: str = "info"

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach the server."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True
