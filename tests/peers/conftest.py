"""A server of random weights for the clients of others."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_server(tiny_chat: Path) -> Iterator[Any]:
    """A RunningServer of `tiny_chat`, in float32."""
    for needed in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(needed, reason="the extra serve has it")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "serve")
        running = import_module("running_server").RunningServer(tiny_chat, "--dtype", "float32")
    yield running.ready()
    running.stop()
