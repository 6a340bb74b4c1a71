"""The OpenAPI document: that it tells of every reply, and that the server keeps to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from standin_engine import ask

from qwenkit.serve.guard.keys import Keys
from qwenkit.serve.http.openapi import REPLIES

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_api.py"


def document(**settings: Any) -> Any:
    async def what(client: httpx.AsyncClient) -> Any:
        return (await client.get("/openapi.json", headers={"authorization": "Bearer " + "a" * 8})).json()

    return ask(what, **settings)


def test_every_operation_tells_its_replies() -> None:
    found = document()
    assert REPLIES.keys() <= found["paths"].keys()
    for operations in found["paths"].values():
        for method, operation in operations.items():
            statuses = operation["responses"].keys()
            assert "422" not in statuses
            assert {"200", "500"} <= statuses
            assert "401" not in statuses
            if method == "post":
                assert {"400", "404", "408", "413", "415", "429", "503"} <= statuses
    assert "Error" in found["components"]["schemas"]
    assert "HTTPValidationError" not in str(found)


def test_with_keys_it_asks_for_one() -> None:
    found = document(keys=Keys(["a" * 8]))
    assert found["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    chat, health = (found["paths"][path] for path in ("/v1/chat/completions", "/health"))
    assert chat["post"]["security"] == [{"key": []}]
    assert "401" in chat["post"]["responses"]
    assert "security" not in health["get"]


def test_the_server_keeps_to_it_whatever_is_sent(tiny_chat: Path) -> None:
    """A few examples of each operation; `scripts/fuzz_api.py` sends as many as one likes."""
    pytest.importorskip("schemathesis")
    done = subprocess.run(
        [sys.executable, SCRIPT, str(tiny_chat), "--examples", "4", "--phases", "examples,fuzzing,stateful",
         "--", "--no-shrink"], capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 0 restarts" in done.stdout
