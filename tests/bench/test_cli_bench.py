"""`qwenkit bench` on a small real checkpoint: JSON, table and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qwenkit.cli.main import app

PROMISED = {
    "decode_tok_s", "prefill_tok_s", "ttft_s", "output_tok_s", "weight_gb_s", "read_gb_s", "bandwidth_share",
    "peak_rss_mb", "kernels",
}  # fmt: skip


def bench(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", *arguments])


def test_a_folder_is_measured(tiny_chat: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    ended = bench(
        str(tiny_chat), "--prompt", "40", "--decode", "6", "--depth", "100", "--concurrency", "3",
        "--threads", "1", "--repeats", "2", "--quiet",
        "--json", str(found), "--plot", str(tmp_path / "x.svg"),
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "x.svg"]
    summary = json.loads(found.read_text())
    assert summary.keys() >= PROMISED
    assert summary["decode_tok_s"] > 0
    first_s = [sample["first_s"][0] for sample in summary["engines"][0]["points"][0]["samples"]]
    assert summary["prefill_tok_s"] == pytest.approx(sum(40 / s for s in first_s) / 2)
    assert summary["ttft_s"] == pytest.approx(sum(first_s) / 2)
    assert summary["peak_rss_mb"] > 100
    assert summary["load_s"] < summary["start_s"]
    assert summary["machine"]["threads"] == 1
    # 2 layers of [96, 32], [32, 32], 2 x [48, 32], [32, 48] and the output layer, in bfloat16
    own = summary["engines"][0]
    exact = 2 * (151936 * 32 + 2 * (96 * 32 + 32 * 32 + 3 * 48 * 32))
    assert exact < own["weight_bytes"] < exact * 1.01
    assert summary["weight_gb_s"] == pytest.approx(own["weight_bytes"] * summary["decode_tok_s"] / 1e9)
    if summary["read_gb_s"] is not None:
        assert summary["bandwidth_share"] == pytest.approx(summary["weight_gb_s"] / summary["read_gb_s"])
    kinds = [(point["kind"], point["prompt"], point["sequences"]) for point in own["points"]]
    assert kinds == [("plain", 40, 1), ("depth", 100, 1), ("concurrency", 40, 3)]
    assert [len(point["samples"]) for point in own["points"]] == [2, 2, 2]
    assert set(summary["kernels"]) == {"1", "3", "40", "100"}
    for words in ("decode tok/s", "of read", "kernels for 1 row", "Medians of 2 rounds"):
        assert words in ended.stdout
    assert all(line == line.rstrip() for line in ended.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["some-folder", "--shape", "qwen-1.8b"], 2, "not both"),
        (["--shape", "qwen-9b"], 1, "Unknown model size 'qwen-9b'"),
        (["--shape", "qwen-1.8b", "--prompt", "40000"], 1, "40065 tokens of context"),
        (["--shape", "qwen-1.8b", "--weights", "int3"], 2, "int3"),
        (["--prompt", "0"], 2, "--prompt"),
        (["--concurrency", "0"], 2, "--concurrency"),
        (["--json", "/nowhere/x.json"], 1, "Cannot write /nowhere/x.json"),
        (["--plot", "/nowhere/x.svg"], 1, "Cannot write /nowhere/x.svg"),
        (["--plot", "picture.txt"], 1, ".png, .svg, .pdf"),
        (["/nowhere/model"], 1, "/nowhere/model"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], code: int, words: str) -> None:
    ended = bench(*arguments)
    assert ended.exit_code == code
    assert words in ended.output
