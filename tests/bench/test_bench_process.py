"""An engine's process may do anything; ours reports it by name and goes on."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from scripted_engines import bad, garbage, good

from qwenkit.bench.peers.process import EngineError, EngineProcess

ASK = {"prompts": [[1, 2, 3]], "new": 4}


def started(adapter: Path) -> EngineProcess:
    process = EngineProcess("Rival", sys.executable, adapter, {})
    process.call("load", timeout_s=30, job={"model": "m"})
    return process


def test_prints_of_an_engine_do_not_disturb_its_answers(tmp_path: Path) -> None:
    with started(good(tmp_path)) as process:
        assert process.call("run", timeout_s=30, **ASK)["tokens"] == [4]
        assert process.call("memory", timeout_s=30)["peak_rss_mb"] > 1
        assert process.cpu_seconds() > 0


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("crash", "Rival crashed with SIGSEGV"),
        ("exit", "Rival ended with exit code 3. Its last words: the last words"),
        ("abort", "Rival crashed with SIGABRT. Its last words: ASSERT(x) failed"),
        ("raise", "Rival could not run: ValueError: no such format"),
    ],
)
def test_failures_are_named(tmp_path: Path, how: str, words: str) -> None:
    with started(bad(tmp_path, how)) as process, pytest.raises(EngineError) as told:
        process.call("run", timeout_s=30, **ASK)
    assert words in str(told.value)


def test_an_engine_that_hangs_is_ended(tmp_path: Path) -> None:
    with started(bad(tmp_path, "hang")) as process:
        with pytest.raises(EngineError, match="Rival gave no answer in 1 s"):
            process.call("run", timeout_s=1, **ASK)
        assert not process.alive
        with pytest.raises(EngineError, match="Rival"):
            process.call("run", timeout_s=1, **ASK)


def test_an_engine_that_takes_nothing_is_ended(tmp_path: Path) -> None:
    with started(bad(tmp_path, "hang")) as process:
        process._write(b'{"call": "run", "prompts": [[1]], "new": 1}\n', 1)
        with pytest.raises(EngineError, match="Rival took no question for 1 s"):
            process.call("run", timeout_s=1, prompts=[[1] * 100_000], new=1)  # more than a pipe holds


def test_garbage_instead_of_an_answer(tmp_path: Path) -> None:
    with (
        EngineProcess("Rival", sys.executable, garbage(tmp_path), {}) as process,
        pytest.raises(EngineError, match="Rival answered load with something else than JSON: 'hello"),
    ):
        process.call("load", timeout_s=30, job={})


def test_a_python_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"Rival did not start: /nowhere/python: No such file"):
        EngineProcess("Rival", "/nowhere/python", good(tmp_path), {})


def test_a_paused_engine_computes_nothing_and_wakes(tmp_path: Path) -> None:
    adapter = good(tmp_path)
    spin = "import threading\nthreading.Thread(target=lambda: all(True for _ in iter(int, 1)), daemon=True)"
    adapter.write_text(adapter.read_text() + spin + ".start()\n")
    with started(adapter) as process:
        process.pause()
        time.sleep(0.05)
        before = process.cpu_seconds()
        time.sleep(0.3)
        assert process.cpu_seconds() == before
        assert process.call("run", timeout_s=30, **ASK)["tokens"] == [4]
