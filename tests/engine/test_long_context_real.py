"""NTK and LogN on real weights: one pass over twice the training length, read in chunks."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwenkit.checkpoint import open_checkpoint, write_checkpoint
from qwenkit.engine import Qwen

pytestmark = [pytest.mark.model, pytest.mark.timeout(7200)]

TOKENS, BUCKET = 16384, 2048
EXPECTED = {
    "plain": (39.35, [14.8, 16.4, 11.6, 16.4, 8.6, 32.5, 317, 1422]),
    "ntk": (12.83, [15.2, 17.3, 12.2, 17.8, 9.1, 10.0, 9.6, 14.9]),
    "ntk+logn": (12.70, [15.2, 17.3, 12.2, 17.8, 9.0, 9.7, 9.3, 14.6]),
    "logn": (40.50, [14.8, 16.4, 11.6, 16.4, 8.6, 32.6, 355, 1592]),
}
"""Perplexity of all tokens and by bucket: SmolLM2-135M-Instruct, trained on 8192 tokens, in bfloat16, over
the Debian Reference. Measured once with another implementation (plain PyTorch, the whole text at once)."""


def within(found: list[float], expected: list[float], share: float) -> bool:
    return len(found) == len(expected) and all(
        abs(a / b - 1) <= share for a, b in zip(found, expected, strict=True)
    )


def perplexities(log_probs: list[float]) -> tuple[float, list[float]]:
    parts = [log_probs[at : at + BUCKET] for at in range(0, len(log_probs), BUCKET)]
    whole, *buckets = (math.exp(-math.fsum(part) / len(part)) for part in [log_probs, *parts])
    return whole, buckets


@pytest.fixture(scope="module")
def folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in the layout of 2023, where NTK and LogN can be switched."""
    checkpoint = open_checkpoint(smollm2)
    assert checkpoint.config.seq_length == 8192
    path = tmp_path_factory.mktemp("v1") / "smollm2"
    config = replace(checkpoint.config, max_positions=TOKENS)
    write_checkpoint(
        checkpoint.planned(torch.bfloat16), config, checkpoint.tokenizer(), path,
        layout="qwen-v1", dtype=torch.bfloat16, generation=checkpoint.generation,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def ids(folder: Path, debian_reference: str) -> list[int]:
    """From the preface on, without the tables of contents and the indentation."""
    text = debian_reference[debian_reference.rindex("\nPreface\n") + 1 :]
    return open_checkpoint(folder).tokenizer().encode(re.sub(r"[ \t]+", " ", text))[:TOKENS]


def load(folder: Path, setting: str, kv_cache: str = "auto") -> Qwen:
    switches = {"use_dynamic_ntk": "ntk" in setting, "use_logn_attn": "logn" in setting}
    config = json.loads((folder / "config.json").read_text()) | switches
    (folder / "config.json").write_text(json.dumps(config))
    return Qwen.load(folder, dtype="bfloat16", kv_cache=kv_cache, max_running=1)


@pytest.mark.parametrize("setting", EXPECTED)
def test_buckets_are_within_one_percent(folder, ids, setting):
    whole, buckets = perplexities(load(folder, setting).score(ids, chunk=2048))
    print(f"{setting}: {whole:.2f}", *(f"{bucket:.2f}" for bucket in buckets))
    assert within([whole, *buckets], [EXPECTED[setting][0], *EXPECTED[setting][1]], 0.01)


@pytest.mark.parametrize(("kv_cache", "most"), [("int8", 0.01), ("int8-affine", 0.01)])
def test_eight_bits_cost_less_than_a_hundredth(folder, ids, kv_cache, most):
    whole, buckets = perplexities(load(folder, "ntk+logn", kv_cache).score(ids, chunk=2048))
    print(f"{kv_cache}: {whole:.2f}", *(f"{bucket:.2f}" for bucket in buckets))
    assert whole / EXPECTED["ntk+logn"][0] - 1 < most
