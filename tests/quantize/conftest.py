"""Sources to quantize, made once, and a text to measure with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_sources import TEXT, make

from qwenkit.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def qwen2(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make(tmp_path_factory.mktemp("qwen2") / "source", vocabulary, "qwen2")


@pytest.fixture(scope="session")
def v1(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make(
        tmp_path_factory.mktemp("v1") / "source",
        vocabulary,
        "qwen-v1",
        torch.bfloat16,
        architecture="qwen",
        num_kv_heads=4,
        num_layers=2,
        dynamic_ntk=True,
        logn=True,
        seq_length=48,  # NTK and LogN act on the calibration
    )


@pytest.fixture(scope="session")
def eval_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "held_out.md"
    path.write_text((TEXT.parent / "CONTRIBUTING.md").read_text() * 2)
    return path
