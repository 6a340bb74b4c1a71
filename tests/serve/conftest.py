"""One server with default options that most tests share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer

if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client", "openai") if not find_spec(name)]:
    collect_ignore_glob = ["test_*.py"]
    warnings.warn(f"tests/serve is left out, for want of {', '.join(missing)} (extra dev).", stacklevel=1)


@pytest.fixture(scope="session")
def server(tiny_chat: Path) -> Iterator[RunningServer]:
    running = RunningServer(tiny_chat, "--served-name", "gpt-test")
    yield running.ready()
    running.stop()


@pytest.fixture
def start() -> Iterator[Callable[..., RunningServer]]:
    """Starts servers as RunningServer does; they are ended with the test, however it ends."""
    started: list[RunningServer] = []

    def begin(*arguments: Any, **named: Any) -> RunningServer:
        started.append(RunningServer(*arguments, **named))
        return started[-1]

    yield begin
    for running in started:
        running.stop()
