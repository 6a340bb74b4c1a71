"""Death and end: the engine killed under load, limits under load, draining, and starts that fail."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from running_server import RunningServer, events, eventually

from qwenkit.core import Delta, SamplingParams, TokenLogprob
from qwenkit.serve.engine.messages import EngineConfig, Generate, Piece
from qwenkit.serve.engine.supervisor import Supervisor, Wish
from qwenkit.serve.engine.wire import WireError, pack, receive

CHAT = "/v1/chat/completions"
LONG = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6000, "ignore_eos": True}


def test_a_killed_engine_fails_its_requests_and_comes_back_then_drains(
    tiny_chat: Path, start: Callable[..., RunningServer]
) -> None:
    server = start(tiny_chat, "--log-format", "json").ready()
    engine = server.engine_pid()

    def whole() -> str:
        with server.client() as client:
            answer = client.post(CHAT, json=LONG)
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            return str(answer.json()["error"]["code"])

    def stream() -> str:
        with server.client() as client:
            answer = client.post(CHAT, json={**LONG, "stream": True})
            assert answer.status_code == 200
            return str(json.loads(events(answer.text)[-1])["error"]["code"])

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask) for ask in (whole, stream) for _ in range(4)]
        eventually(lambda: server.engine_numbers()["running"] == 8)
        os.kill(engine, signal.SIGKILL)
        assert {future.result() for future in waiting} == {"engine_died"}
    with server.client() as client:
        away = client.get("/health")
        assert away.status_code == 503
        assert away.json()["status"] == "restarting"
        assert "SIGKILL" in away.json()["reason"]
        eventually(lambda: client.get("/ready").status_code == 200)
        assert client.get("/health").json()["restarts"] == 1
        assert server.engine_pid() != engine
        with client.stream("POST", CHAT, json={**LONG, "max_tokens": 400, "stream": True}) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
            *_, last = (line for line in lines if line)
    assert first.startswith("data: ")
    assert last == "data: [DONE]"
    assert server.process.wait(60) == 0
    assert all(json.loads(line) for line in server.lines if line.startswith("{"))
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_a_small_house_with_keys_refuses_times_out_and_closes(
    tiny_chat: Path, tmp_path: Path, start: Callable[..., RunningServer]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# for the team\nfirst-secret-key\n")
    server = start(
        tiny_chat, "--api-key-file", str(keys), "--max-running", "1", "--max-queue", "1",
        "--request-timeout", "2", "--drain-timeout", "0.2", "--max-choices", "2",
        variables={"QWENKIT_API_KEYS": "second-secret-key"},
    ).ready()  # fmt: skip
    environment = Path(f"/proc/{server.engine_pid()}/environ").read_bytes()
    assert b"second-secret-key" not in environment
    assert b"MALLOC_ARENA_MAX=" in environment
    with server.client() as stranger:
        assert stranger.post(CHAT, json=LONG).status_code == 401
        assert stranger.get("/health").status_code == 200
    with (
        server.client(headers={"Authorization": "Bearer second-secret-key"}) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        answers = [pool.submit(client.post, CHAT, json=LONG) for _ in range(3)]
        statuses = sorted(answer.result().status_code for answer in answers)
        assert statuses == [429, 504, 504]
        with client.stream("POST", CHAT, json={**LONG, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            *_, last = (line for line in lines if line)
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_stopped"
    assert server.process.wait(60) == 0
    assert not any("secret" in line for line in server.lines)


def test_a_model_that_is_not_there_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    program = "from qwenkit.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", str(tmp_path), "--port", "0", "--host", "0.0.0.0"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert str(tmp_path) in done.stderr
    assert "warning: anyone who reaches 0.0.0.0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_an_error_before_anything_is_loaded(server: RunningServer, tiny_chat: Path) -> None:
    port = server.url.rsplit(":", 1)[1]
    program = "from qwenkit.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "serve", str(tiny_chat), "--port", port],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"port {port}" in done.stderr


def test_an_engine_that_cannot_start_is_started_again_and_said_so() -> None:
    async def run() -> None:
        supervisor = Supervisor(EngineConfig(), (sys.executable, "-c", "raise SystemExit(3)"))
        await supervisor.start()
        while supervisor.health().restarts < 1:
            await asyncio.sleep(0.01)
        assert supervisor.health().state == "restarting"
        assert supervisor.health().reason == "ended with exit code 3"
        with pytest.raises(Exception, match="The engine is restarting: ended with exit code 3"):
            supervisor.generate([Wish("a", SamplingParams())])
        await supervisor.stop()
        assert supervisor.health().state == "stopped"

    asyncio.run(run())


def test_messages_arrive_as_they_were_and_nothing_else_is_read() -> None:
    sent = [
        Generate(1, (1, 2), SamplingParams(stop=("a",), logit_bias={3: 1.0})),
        Piece(2, Delta("中", logprobs=(TokenLogprob(1, b"\xff", -1.0),))),
    ]

    async def read(frame: bytes) -> list[object]:
        reader = asyncio.StreamReader()
        reader.feed_data(frame)
        reader.feed_eof()
        return await receive(reader)

    assert asyncio.run(read(pack(sent))) == sent
    evil = pack([os.system])
    for frame in (evil, pack([])[:4] + b"garbage", b"\xff\xff\xff\xff", pack([])[:4] + pickle.dumps(5)[:5]):
        with pytest.raises((WireError, EOFError)):
            asyncio.run(read(frame))


@pytest.mark.parametrize("module", ["qwenkit.serve.server", "qwenkit.serve.app"])
def test_the_http_process_has_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'numpy', 'tiktoken') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_starts_without_the_server() -> None:
    code = (
        "import sys, qwenkit.cli.main; "
        "print([m for m in ('qwenkit.serve', 'fastapi', 'uvicorn', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
