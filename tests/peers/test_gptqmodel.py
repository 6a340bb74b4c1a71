"""GPTQModel on the same weights and calibration: what we round predicts other text no worse.

Needs the Python that QWENKIT_PEER_GPTQMODEL_PYTHON names, with gptqmodel in it.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from client_python import client_python

from qwenkit import Qwen
from qwenkit.checkpoint import locate, open_checkpoint, plan_conversion, write_checkpoint
from qwenkit.eval import Window, compare
from qwenkit.quantize import Settings, quantize
from qwenkit.quantize.builtin_texts import held_out_texts
from qwenkit.quantize.calibration import read_calibration, text_windows
from qwenkit.quantize.source import Source

pytestmark = [pytest.mark.peer, pytest.mark.model, pytest.mark.timeout(1800)]

SETTINGS = Settings(samples=10, length=512)  # as few as there are inputs in the widest layer
BLOCKS = 4  # of 24, for time's sake


def first_blocks(folder: Path) -> Path:
    """The demo model's first blocks with its embedding and output, in bfloat16."""
    whole = folder.with_name("whole")
    plan_conversion(open_checkpoint(locate("demo").path), "qwen2", dtype=torch.bfloat16).write(whole)
    checkpoint = open_checkpoint(whole)
    model = checkpoint.load_model(dtype=torch.bfloat16)
    del model.transformer.h[BLOCKS:]
    write_checkpoint(
        model, replace(checkpoint.config, num_layers=BLOCKS), checkpoint.tokenizer(), folder,
        layout="qwen2", dtype=torch.bfloat16, generation=checkpoint.generation,
    )  # fmt: skip
    return folder


def test_divergence_is_no_larger(tmp_path: Path) -> None:
    python = client_python("gptqmodel", "gptqmodel")
    source = first_blocks(tmp_path / "source")
    checkpoint = open_checkpoint(source)
    quantize(checkpoint, tmp_path / "ours", SETTINGS, max_increase=1000)
    calibration = read_calibration(Source(checkpoint, torch.bfloat16), SETTINGS)
    script = Path(__file__).with_name("gptqmodel_quantize.py")
    done = subprocess.run(
        [python, str(script), str(source), str(tmp_path / "theirs")], cwd=tmp_path,  # it writes logs there
        input=json.dumps(calibration.texts), capture_output=True, text=True, timeout=1500,
        env={"GPTQMODEL_CPU_WORKERS": "2", **os.environ},  # on two cores it ends with an error otherwise
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    windows = [
        Window(name, ids)
        for name, text in held_out_texts().items()
        for ids in text_windows(text, checkpoint.tokenizer(), 2, 512)
    ]
    models = {
        name: Qwen.load(tmp_path / name, weights="exact", dtype="bfloat16")
        for name in ("source", "ours", "theirs")
    }
    found = {name: compare(models["source"], models[name], windows) for name in ("ours", "theirs")}
    print(found)
    assert found["ours"].mean <= found["theirs"].mean
    assert found["ours"].loss_b <= found["theirs"].loss_b + 0.01  # 3,000 tokens tell no less apart
