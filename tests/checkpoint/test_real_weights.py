"""The demo model, as it is and re-expressed in the v1 layout: real weights through the v1 path."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from qwenkit.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from qwenkit.core import Message
from qwenkit.model import Batch, CausalLM, DenseCache
from qwenkit.text import chatml

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    given = os.environ.get("QWENKIT_TEST_GGUF")
    if given:
        return open_checkpoint(Path(given))
    from qwenkit.checkpoint import locate

    return open_checkpoint(locate("demo").path)


@torch.inference_mode()
def run(model: CausalLM, ids: list[int], count: int) -> tuple[torch.Tensor, list[int]]:
    """Logits of the whole prompt, and `count` greedy tokens after it."""
    cache = DenseCache(model.shape.num_layers)
    logits = model(torch.tensor([ids]), Batch.make(1, len(ids), cache=cache))[0]
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < count:
        batch = Batch.make(1, 1, past=cache.length, cache=cache)
        tokens.append(int(model(torch.tensor([tokens[-1:]]), batch)[0, 0].argmax()))
    return logits, tokens


def test_header_is_read_and_understood(demo):
    assert demo.config.architecture == "qwen2"
    assert demo.is_chat
    assert demo.generation.default_system.startswith("You are Qwen, created by Alibaba Cloud.")
    assert demo.generation.stop_token_ids == (151645, 151643)
    assert demo.tokenizer().im_end_id == 151645


def test_v1_layout_gives_the_logits_and_the_text_of_the_qwen2_path(demo, tmp_path):
    tokenizer = demo.tokenizer()
    messages = [Message("user", "What is the capital of France?")]
    ids = chatml.encode(tokenizer, messages, default_system=demo.generation.default_system)
    model = demo.load_model(dtype=torch.float32)
    logits, tokens = run(model, ids, 12)
    assert "Paris" in tokenizer.decode(tokens)
    del model

    folder = tmp_path / "v1"
    write_checkpoint(
        demo.planned(torch.float32),
        demo.config,
        tokenizer,
        folder,
        layout="qwen-v1",
        dtype=torch.float32,
        generation=demo.generation,
        max_shard_bytes=1_000_000_000,
    )
    again = open_checkpoint(folder)
    assert again.layout == "qwen-v1"
    assert again.config.num_kv_heads == again.config.num_heads == 14
    assert chatml.encode(again.tokenizer(), messages, default_system=again.generation.default_system) == ids
    v1_logits, v1_tokens = run(again.load_model(dtype=torch.float32), ids, 12)
    torch.testing.assert_close(v1_logits, logits, atol=1e-4, rtol=1e-4)
    assert v1_tokens == tokens


def test_known_content_starts_from_the_cache(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("QWENKIT_CACHE", str(tmp_path))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        checkpoint = open_checkpoint(demo.path, content_hash="demo")
        model = checkpoint.load_model(dtype=torch.bfloat16)
        seconds.append(time.perf_counter() - start)
    print(f"first start {seconds[0]:.2f} s, second {seconds[1]:.2f} s")
    assert len(list((tmp_path / "derived").iterdir())) == 1
    assert model.transformer.wte.weight.dtype == torch.bfloat16
