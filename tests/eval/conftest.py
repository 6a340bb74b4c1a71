"""Small random models that know bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qwenkit import Qwen
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.text import Tokenizer

SPECIAL = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Ids 0 to 255 are the bytes."""
    return Tokenizer({bytes([i]): i for i in range(256)}, special_tokens=SPECIAL, name="bytes")


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Callable[[int], Qwen]:
    """A random model by seed."""

    def make(seed: int) -> Qwen:
        config = ModelConfig(
            architecture="qwen2", vocab_size=272, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2,
            head_dim=8, ffn_size=48, rotary_dim=8, rope_base=1e4, seq_length=200, max_positions=200,
            tied_embeddings=False, initializer_range=0.4,
        )  # fmt: skip
        return Qwen(CausalLM(config).initialize(seed).eval(), tokenizer)

    return make
