"""What is left of a run that does not come to its end: the rounds before, a reason, and no processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scripted_engines import good, later
from typer.testing import CliRunner

from qwenkit.bench.peers import catalog
from qwenkit.bench.peers.process import EngineError
from qwenkit.bench.rounds import Contender, Rounds
from qwenkit.bench.summary import summarize
from qwenkit.bench.workload import Workload
from qwenkit.cli.main import app

ROUND = 1  # runs of a round here: one point; a warm-up comes before the first


def peer(adapter: Path, name: str = "Rival") -> catalog.Peer:
    return catalog.Peer(name.lower(), name, "json", str(adapter), "folder", ("bf16",), {})


def bench(model: Path, *arguments: str) -> Any:
    sizes = ("--prompt", "8", "--decode", "3", "--threads", "1")
    return CliRunner().invoke(app, ["bench", str(model), "--peers", *sizes, *arguments])


def gone(process: int) -> bool:
    """Whether it ended within a second; a zombie has."""
    for _ in range(100):
        try:
            if ") Z " in Path(f"/proc/{process}/stat").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("QWENKIT_CACHE", str(tmp_path / "cache"))
    return lambda *found: monkeypatch.setattr(catalog, "PEERS", found)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_what_was_measured(
    tiny_chat: Path, tmp_path: Path, peers: Any, number: signal.Signals, code: int
) -> None:
    handler = signal.getsignal(number)
    peers(peer(later(tmp_path, f"os.kill(os.getppid(), {number.value}); time.sleep(60)", 1 + ROUND)))
    found = tmp_path / "found.json"
    ended = bench(tiny_chat, "--repeats", "3", "--json", str(found))
    assert ended.exit_code == code, ended.output
    assert f"Interrupted by {number.name}." in ended.stderr
    assert "Rival" in ended.stdout
    assert "1 of 3 rounds finished" in ended.stdout
    summary = json.loads(found.read_text())
    assert summary["rounds"] == {"finished": 1, "asked": 3}
    assert summary["incomplete"] == f"Interrupted by {number.name}."
    assert [len(engine["points"][0]["samples"]) for engine in summary["engines"]] == [2, 1]
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert all(gone(int(process)) for process in (tmp_path / "processes.txt").read_text().split())
    assert signal.getsignal(number) is handler


def test_an_interrupt_before_any_number_leaves_the_file_that_was_there(
    tiny_chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(keys: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(catalog, "choose", interrupted)
    found = tmp_path / "found.json"
    found.write_text("before")
    ended = bench(tiny_chat, "--json", str(found))
    assert ended.exit_code == 143
    assert ended.stdout == ""
    assert ended.stderr == "Interrupted by SIGTERM.\n"
    assert found.read_text() == "before"


def test_a_peer_that_exceeds_the_time_limit_is_dropped(tiny_chat: Path, tmp_path: Path, peers: Any) -> None:
    slow = later(tmp_path, "time.sleep(60)", 1 + ROUND)
    peers(peer(slow, "Slow"), peer(good(tmp_path), "Other"))
    found = tmp_path / "found.json"
    ended = bench(tiny_chat, "--repeats", "2", "--timeout", "3", "--json", str(found))
    assert ended.exit_code == 0, ended.output
    assert "Slow gave no answer in 3 s; it was ended." in ended.stdout
    summary = json.loads(found.read_text())
    assert summary["incomplete"] is None
    assert summary["rounds"] == {"finished": 2, "asked": 2}
    assert [len(engine["points"][0]["samples"]) for engine in summary["engines"]] == [2, 1, 2]
    _, dropped, other = summary["engines"]
    assert dropped["failure"].startswith("Slow gave no answer in 3 s")
    assert other["failure"] is None
    assert all(gone(int(process)) for process in (tmp_path / "processes.txt").read_text().split())


def rounds_of(*adapters: Path, saved: list[dict[str, Any]]) -> Rounds:
    contenders = [
        Contender(name, sys.executable, adapter, {"model": None})
        for name, adapter in zip(("qwenkit", "Rival"), adapters, strict=False)
    ]
    rounds = Rounds(
        contenders,
        Workload(prompt=100, decode=10, repeats=3),
        timeout_s=20,
        save=lambda: saved.append(summarize(rounds, {"cpu": "a cpu", "cores": 2})),
    )
    return rounds


def test_every_round_is_saved(tmp_path: Path) -> None:
    saved: list[dict[str, Any]] = []
    rounds_of(good(tmp_path, "ours"), good(tmp_path, "theirs"), saved=saved).run()
    assert [one["rounds"]["finished"] for one in saved] == [1, 2, 3]
    assert [one["incomplete"] for one in saved] == ["It still runs, or was killed."] * 2 + [None]
    assert [len(one["engines"][1]["points"][0]["samples"]) for one in saved] == [1, 2, 3]


def test_our_own_failure_costs_no_finished_round(tmp_path: Path) -> None:
    saved: list[dict[str, Any]] = []
    with pytest.raises(EngineError, match="qwenkit crashed"):
        rounds_of(later(tmp_path, "os.abort()", 1 + ROUND), good(tmp_path), saved=saved).run()
    assert [one["rounds"]["finished"] for one in saved] == [1, 1]
    assert saved[-1]["incomplete"].startswith("qwenkit crashed with SIGABRT.")
    assert [len(engine["points"][0]["samples"]) for engine in saved[-1]["engines"]] == [1, 1]


def test_a_peer_that_says_no_is_ended(tmp_path: Path) -> None:
    saved: list[dict[str, Any]] = []
    theirs = later(tmp_path, 'raise ValueError("enough")', 0)
    rounds_of(good(tmp_path), theirs, saved=saved).run()
    assert saved[-1]["engines"][1]["failure"] == "Rival could not run: ValueError: enough"
    assert all(gone(int(process)) for process in (tmp_path / "processes.txt").read_text().split())
