"""Fixtures that keep the downloading tests on this machine and out of the user's caches."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, serve

from qwenkit.checkpoint.sources import transfer


@pytest.fixture
def closed_port() -> str:
    """A loopback address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: str) -> Path:
    """Empty caches, no hub, no package index, quick retries. Returns a folder to work in."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith(
            ("HF_", "PIP_", "UV_", "QWENKIT_", "MODELSCOPE_")
        ):
            monkeypatch.delenv(name)
    settings = {
        "QWENKIT_CACHE": tmp_path / "cache",
        "HF_HUB_CACHE": tmp_path / "hub",
        "HF_ENDPOINT": closed_port,
        "MODELSCOPE_ENDPOINT": closed_port,
        "MODELSCOPE_CACHE": tmp_path / "modelscope",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_INDEX_URL": f"{closed_port}/simple",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(transfer, "RETRY_DELAYS", (0.01, 0.01))
    return tmp_path


@pytest.fixture
def hub(alone: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running, well-behaved hub without repositories."""
    with serve(Hub()) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
