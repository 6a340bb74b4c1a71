"""The command: exit codes, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_sources import TEXT

from qwenkit.cli.main import main

SMALL = ["--group-size", "32", "--calibration", str(TEXT), "--samples", "6", "--length", "64"]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_it_says_what_was_lost(qwen2, eval_text, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["quantize", qwen2.path, "--out", out, *SMALL, "--eval-text", eval_text, "--offline"]
    assert run(*command, "--max-ppl-increase", 1000) == 0
    shown = capsys.readouterr()
    report = json.loads((out / "quantize_report.json").read_text())
    assert report["state"] == "passed"
    assert f"{report['texts'][0]['perplexity']['quantized']:.3f}" in shown.out
    assert "allowed are 1000 %" in shown.out
    assert shown.err.count("layer ") == 3
    assert "attn.c_attn" in shown.err
    assert run(*command) == 1
    assert "exists" in capsys.readouterr().err


def test_a_budget_is_said(qwen2, eval_text, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["quantize", qwen2.path, "--out", out, *SMALL, "--eval-text", eval_text, "--offline"]
    assert run(*command, "--budget", "5.5bits", "--max-ppl-increase", 1000) == 0
    shown = capsys.readouterr()
    assert "8 bits g32: " in shown.out
    assert "bits a weight" in shown.out
    assert "bits a weight:" in shown.err
    assert run("info", out) == 0
    assert "GPTQ int4/int8 g32, 5." in capsys.readouterr().out


def test_a_result_that_lost_too_much_ends_with_3(qwen2, eval_text, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["quantize", "--model", qwen2.path, "--out", out, *SMALL, "--method", "rtn", "--asym"]
    assert run(*command, "--eval-text", eval_text, "--max-ppl-increase", -100) == 3
    assert "FAILED" in capsys.readouterr().err
    assert json.loads((out / "quantize_config.json").read_text())["sym"] is False


def test_wrong_input_is_one_message(qwen2, tmp_path, capsys):
    for wrong, message in (
        (["--bits", "3"], "3 bits"),
        (["--group-size", "60"], "Groups of 60"),
        (["--calibration", "nowhere.json"], "nowhere.json"),
        (["--length", "100000"], "reads 256"),
        (["--budget", "small"], "'small'"),
        (["--budget", "3bits"], "4.625 bits a weight with 4 bits everywhere"),
        (["--budget", "5bits", "--bits", "8"], "a budget chooses"),
    ):
        assert run("quantize", qwen2.path, "--out", tmp_path / "out", *SMALL, *wrong) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_ctrl_c_says_how_to_go_on(qwen2, eval_text, tmp_path, capsys, monkeypatch):
    from qwenkit.cli.quantize_progress import QuantizeProgress

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(QuantizeProgress, "layer", stopped)
    out = tmp_path / "out"
    command = ["quantize", qwen2.path, "--out", out, *SMALL, "--eval-text", eval_text]
    assert run(*command) == 130
    assert "The same command continues" in capsys.readouterr().err
    assert [path.name for path in Path(tmp_path).iterdir()] == ["out.unfinished"]
    monkeypatch.undo()
    run(*command)
    assert "1 of 3 layers are finished already" in capsys.readouterr().err
