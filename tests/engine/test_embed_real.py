"""Vectors of the real demo model beside those of transformers, which reads the same file."""

from __future__ import annotations

import os

import pytest
import torch

from qwenkit.checkpoint import locate
from qwenkit.engine import Qwen

pytestmark = pytest.mark.model

TEXTS = [
    "A cat sits on the mat.",
    "一只猫坐在垫子上。",
    "def add(a, b):\n    return a + b\n" * 40,
    "The stock market fell sharply on Monday.",
]


@pytest.fixture(scope="module")
def states() -> list[torch.Tensor]:
    """transformers' last hidden state of each text [tokens, hidden size]."""
    from transformers import AutoModel, AutoTokenizer

    path = locate(None).path
    where = {"pretrained_model_name_or_path": os.path.dirname(path), "gguf_file": os.path.basename(path)}
    theirs = AutoModel.from_pretrained(**where, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(**where)
    with torch.no_grad():
        return [
            theirs(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).last_hidden_state[0]
            for text in TEXTS
        ]


def vectors(states: list[torch.Tensor], pooling: str) -> torch.Tensor:
    pooled = [one.mean(0) if pooling == "mean" else one[-1] for one in states]
    return torch.nn.functional.normalize(torch.stack(pooled), dim=-1)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_exact_weights_give_transformers_vectors(states: list[torch.Tensor], pooling: str) -> None:
    found = Qwen.load(weights="exact", dtype="float32").embed(TEXTS, pooling=pooling)  # type: ignore[arg-type]
    torch.testing.assert_close(found, vectors(states, pooling), atol=1e-4, rtol=0)


def test_packed_weights_point_the_same_way(states: list[torch.Tensor]) -> None:
    found, expected = Qwen.load().embed(TEXTS), vectors(states, "mean")
    assert (found * expected).sum(-1).min() > 0.99
