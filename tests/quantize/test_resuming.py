"""Stopped at any moment, the same call continues, and the result is the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_sources import settings

from qwenkit.core import CheckpointError, RequestError
from qwenkit.quantize import Watch, quantize

HERE = Path(__file__).parent


class StopAt(Watch):
    """Ctrl-C while a block is worked on."""

    def __init__(self, event: int) -> None:
        self.left = event

    def tokens(self, count: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(qwen2, eval_text, tmp_path_factory) -> bytes:
    """The weights of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    quantize(qwen2, out, settings(dtype="bfloat16"), eval_texts=[eval_text])
    return (out / "model.safetensors").read_bytes()


def test_interrupted_runs_continue_bit_for_bit(qwen2, eval_text, tmp_path, whole):
    out = tmp_path / "out"
    asked, kept = settings(dtype="bfloat16"), []
    for event in (2, 20, 20):  # in the original, in the second layer, in the third
        with pytest.raises(KeyboardInterrupt):
            quantize(qwen2, out, asked, eval_texts=[eval_text], watch=StopAt(event))
        assert not out.exists()
        kept.append(len(list((tmp_path / "out.unfinished").glob("layer-*"))))
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert kept[-1] > kept[1] > 0
    quantize(qwen2, out, asked, eval_texts=[eval_text])
    assert (out / "model.safetensors").read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from qwenkit.checkpoint import open_checkpoint
from qwenkit.quantize import quantize
from tiny_sources import settings
left = int(sys.argv[1])
def counted(function):
    def call(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call
os.replace, os.fsync = counted(os.replace), counted(os.fsync)
quantize(open_checkpoint(Path(sys.argv[2])), Path(sys.argv[3]), settings(dtype="bfloat16"),
         eval_texts=[Path(sys.argv[4])])
"""


def test_killed_runs_leave_a_resumable_state_or_a_whole_folder(qwen2, eval_text, tmp_path, whole):
    out = tmp_path / "out"
    for left in (3, 8, 11, 14, 40, 0):  # at the n-th fsync or rename
        program = [sys.executable, "-c", KILLED.format(here=str(HERE))]
        ended = subprocess.run([*program, str(left), str(qwen2.path), str(out), str(eval_text)], timeout=300)
        if out.exists():
            assert (out / "model.safetensors").read_bytes() == whole
            break
        assert ended.returncode == -9
    assert out.exists()
    assert not list(tmp_path.glob("out.unfinished"))


def test_a_folder_that_was_not_measured_yet_is_measured(qwen2, eval_text, tmp_path, whole, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    asked = settings(dtype="bfloat16")
    with monkeypatch.context() as patch:
        patch.setattr("qwenkit.quantize.quantizing.folder_losses", stopped)
        with pytest.raises(KeyboardInterrupt):
            quantize(qwen2, out, asked, eval_texts=[eval_text])
    assert json.loads((out / "quantize_report.json").read_text())["state"] == "unverified"
    assert (out / "model.safetensors").read_bytes() == whole
    assert quantize(qwen2, out, asked, eval_texts=[eval_text]).state in ("passed", "failed")


def test_another_command_is_refused_until_restarted(qwen2, eval_text, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        quantize(qwen2, out, settings(), eval_texts=[eval_text], watch=StopAt(20))
    other = settings(length=65)
    with pytest.raises(RequestError, match=r"1 layers of another quantization.*restart"):
        quantize(qwen2, out, other, eval_texts=[eval_text])
    quantize(qwen2, out, other, eval_texts=[eval_text], restart=True)
    with pytest.raises(CheckpointError, match="exists"):
        quantize(qwen2, out, other, eval_texts=[eval_text])


def test_two_processes_do_not_meet(qwen2, eval_text, tmp_path):
    class Second(Watch):
        def layer(self, number, errors, seconds):
            with pytest.raises(RequestError, match="Another process is working"):
                quantize(qwen2, tmp_path / "out", settings(), eval_texts=[eval_text], restart=True)

    quantize(qwen2, tmp_path / "out", settings(), eval_texts=[eval_text], watch=Second())


def test_a_folder_of_somebody_else_is_not_touched(qwen2, eval_text, tmp_path):
    (tmp_path / "out.unfinished").mkdir()
    (tmp_path / "out.unfinished" / "thesis.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"thesis.txt"):
        quantize(qwen2, tmp_path / "out", settings(), eval_texts=[eval_text], restart=True)
    assert (tmp_path / "out.unfinished" / "thesis.txt").read_text() == "mine"


def test_rounding_while_inference_mode_is_on(qwen2, eval_text, tmp_path, whole):
    with torch.inference_mode():
        quantize(qwen2, tmp_path / "out", settings(dtype="bfloat16"), eval_texts=[eval_text])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole
