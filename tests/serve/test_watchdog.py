"""An engine that hangs: found out by its beats, ended, and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running_server import RunningServer, eventually

from qwenkit.core import SamplingParams
from qwenkit.serve.engine.messages import EngineConfig, EngineNumbers
from qwenkit.serve.engine.supervisor import Supervisor, Wish
from qwenkit.serve.engine.watchdog import SILENT_S, Watchdog
from qwenkit.serve.errors import ServeError


def test_steps_that_advance_are_work_however_long() -> None:
    dog = Watchdog(5)
    for step in range(100):
        dog.heard(EngineNumbers(running=1, steps=step))
        dog.passed(4.9)
        assert not dog.stalled
        assert not dog.hopeless


def test_an_idle_engine_need_not_advance() -> None:
    dog = Watchdog(5)
    for _ in range(100):
        dog.heard(EngineNumbers(steps=7))
        dog.passed(1)
        assert not dog.stalled
    dog.heard(EngineNumbers(steps=7, running=1))
    dog.passed(4.9)
    assert not dog.stalled


@pytest.mark.parametrize("busy", [{"running": 1}, {"waiting": 1}])
def test_a_step_that_does_not_end_is_hopeless(busy: dict[str, int]) -> None:
    dog = Watchdog(5)
    for _ in range(6):
        dog.heard(EngineNumbers(steps=7, **busy))
        assert not dog.hopeless
        dog.passed(1)
    assert dog.hopeless
    assert dog.stalled == "a step has taken more than 5 s"
    dog.begin()
    assert not dog.hopeless


def test_silence_is_stalled_and_then_hopeless() -> None:
    dog = Watchdog(60)
    dog.heard(EngineNumbers())
    dog.passed(SILENT_S + 1)
    assert dog.stalled == "it has not been heard of for 11 s"
    assert not dog.hopeless
    dog.passed(60)
    assert dog.hopeless
    patient = Watchdog(0)
    patient.passed(1e9)
    assert patient.stalled
    assert not patient.hopeless


def patched(patch: str) -> tuple[str, ...]:
    """The command of an engine with a mistake in it."""
    program = (
        f"import time; import qwenkit.engine.engine as e; {patch}; import qwenkit.serve.engine.process as p"
    )
    return sys.executable, "-c", f"{program}; p.main()"


@pytest.mark.parametrize(
    ("patch", "code", "how"),
    [
        ("e.Runner.compute = lambda *_: time.sleep(3600)", "engine_hung", "a step has taken more than 3"),
        ("e.Engine._drafts = lambda _: 1 / 0", "engine_died", "ended with exit code 70"),
    ],
    ids=["hangs", "fails"],
)
def test_an_engine_with_a_mistake_is_started_again(tiny_chat: Path, patch: str, code: str, how: str) -> None:
    async def run() -> None:
        supervisor = Supervisor(EngineConfig(str(tiny_chat)), patched(patch), step_s=3)
        await supervisor.start()
        assert supervisor.loaded is not None
        await supervisor.loaded
        group = supervisor.generate([Wish("hello", SamplingParams(max_tokens=4))])
        with pytest.raises(ServeError) as told:
            async for _ in group.deltas():
                pass
        assert (told.value.status, told.value.code) == (503, code)
        assert how in told.value.problem
        while supervisor.health().state != "alive":
            await asyncio.sleep(0.01)
        assert supervisor.health().restarts == 1
        await supervisor.stop()

    asyncio.run(asyncio.wait_for(run(), 120))


def test_a_stopped_engine_is_stalled_ended_and_replaced(
    tiny_chat: Path, start: Callable[..., RunningServer]
) -> None:
    server = start(tiny_chat, "--step-timeout", "5").ready()
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    said = {"messages": [{"role": "user", "content": "hi"}]}
    with server.client() as client:
        answer = client.post("/v1/chat/completions", json=said)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_hung"
        assert "not been heard of" in answer.json()["error"]["message"]
        eventually(lambda: client.get("/ready").status_code == 200)
        assert client.get("/health").json()["restarts"] == 1
        assert server.engine_pid() != engine
        assert client.post("/v1/chat/completions", json=said).status_code == 200
