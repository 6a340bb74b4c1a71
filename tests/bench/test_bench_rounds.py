"""Turns of several engines: who runs when, what a failure costs, what is written down."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripted_engines import bad, good

from qwenkit.bench.peers.process import EngineError
from qwenkit.bench.report import show
from qwenkit.bench.rounds import Contender, Rounds
from qwenkit.bench.summary import summarize
from qwenkit.bench.workload import Workload

WORK = Workload(prompt=100, decode=10, depths=(200,), concurrency=(4,), repeats=2)
MACHINE = {"cpu": "a cpu", "cores": 2}


def contender(name: str, adapter: Path) -> Contender:
    return Contender(name, sys.executable, adapter, {"model": None})


def run(*contenders: Contender, **options: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    rounds = Rounds(contenders, WORK, timeout_s=20, say=said.append, **options)
    rounds.run()
    return summarize(rounds, MACHINE), said


def test_engines_take_turns_and_ratios_are_ours_over_theirs(tmp_path: Path) -> None:
    ours, theirs = good(tmp_path, "ours", speed=300), good(tmp_path, "theirs", speed=100)
    summary, said = run(contender("qwenkit", ours), contender("Rival", theirs))
    assert said == [
        "Round 1 of 2: qwenkit",
        "Round 1 of 2: Rival",
        "Round 2 of 2: qwenkit",
        "Round 2 of 2: Rival",
    ]
    assert summary["prefill_tok_s"] == pytest.approx(300)
    assert summary["decode_tok_s"] == pytest.approx(10)
    assert summary["ttft_s"] == pytest.approx(1 / 3)
    assert summary["output_tok_s"] == pytest.approx(4 * 11 / (1 / 3 + 1))
    assert summary["weight_gb_s"] == pytest.approx(20)
    assert (summary["read_gb_s"], summary["bandwidth_share"]) == (pytest.approx(40), pytest.approx(0.5))
    assert summary["peak_share"] == pytest.approx(100 * 1e9 / (1 / 3) / 10e12)
    assert summary["kernels"]["1"] == ["int4: AMX int8 tiles (4 layers)"]
    rival = summary["engines"][1]
    plain, deep, many = rival["points"]
    assert plain["prefill_tok_s"] == {"median": 100, "low": 100, "high": 100}
    assert plain["qwenkit_over_this"]["prefill_tok_s"] == pytest.approx(3)
    assert plain["qwenkit_over_this"]["decode_tok_s"] == pytest.approx(1)
    assert (deep["prompt"], many["sequences"]) == (200, 4)
    assert "decode_tok_s" not in many
    assert [len(point["samples"]) for point in rival["points"]] == [2, 2, 2]
    assert rival["peak_rss_mb"] > 1


@pytest.mark.parametrize("how", ["crash", "exit", "hang", "raise", "short"])
def test_a_peer_that_fails_is_reported_and_the_rest_goes_on(tmp_path: Path, how: str) -> None:
    rounds = Rounds(
        [contender("qwenkit", good(tmp_path)), contender("Rival", bad(tmp_path, how))], WORK, timeout_s=3
    )
    rounds.run()
    summary = summarize(rounds, MACHINE)
    ours, rival = summary["engines"]
    assert ours["failure"] is None
    assert len(ours["points"][0]["samples"]) == 2
    assert rival["failure"].startswith("Rival ")
    assert rival["points"][0]["samples"] == []
    screen = io.StringIO()
    show(summary, Console(file=screen, width=200))
    assert rival["failure"][:40] in screen.getvalue()


def test_our_own_failure_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="qwenkit crashed"):
        run(contender("qwenkit", bad(tmp_path, "crash")))


def test_without_room_a_process_does_not_stay(tmp_path: Path) -> None:
    rounds = Rounds([contender("qwenkit", good(tmp_path))], WORK, timeout_s=20, roomy=lambda: False)
    started: list[str] = []
    start = rounds._start
    rounds._start = lambda c, r: (started.append(c.name), start(c, r))[1]  # type: ignore[method-assign]
    rounds.run()
    assert started == ["qwenkit", "qwenkit"]
    assert not rounds._running


def test_the_report_says_all_of_it(tmp_path: Path) -> None:
    summary, _ = run(
        contender("qwenkit", good(tmp_path, "ours", speed=300)),
        contender("Rival", good(tmp_path, "theirs", speed=100)),
    )
    screen = io.StringIO()
    show(summary, Console(file=screen, width=200))
    text = screen.getvalue()
    for words in (
        "reads 40.0 GB/s",
        "int8_amx 10.0 TOP/s",
        "50%",
        "qwenkit is 3.00 x this",
        "a cpu, 2 threads",
    ):
        assert words in text


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_the_picture_shows_every_engine_and_number(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'bench' is not installed")
    from qwenkit.bench.plot import draw

    rounds = Rounds(
        [
            contender("qwenkit", good(tmp_path, "ours", speed=300)),
            contender("Rival", good(tmp_path, "theirs")),
            contender("Broken", bad(tmp_path, "raise")),
        ],
        WORK,
        timeout_s=20,
    )
    rounds.run()
    path = tmp_path / f"picture{suffix}"
    draw(summarize(rounds, MACHINE), path)
    data = path.read_bytes()
    assert data.startswith({".svg": b"<?xml", ".png": b"\x89PNG", ".pdf": b"%PDF"}[suffix])
    if suffix == ".svg":
        for words in ("qwenkit", "Rival", "Broken", "no result", "300", "(50% of read)", "prompt of 100"):
            assert f"{words}".encode() in data
