"""Small models and a byte tokenizer: enough to generate real text in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripted_model import SPECIAL, ScriptedLM

from qwenkit.model import CausalLM, ModelConfig
from qwenkit.text import Tokenizer

TINY_V1 = Path(__file__).parents[1] / "data" / "tiny_v1"


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only wait for each other's threads, for seconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are the bytes, then four special tokens."""
    return Tokenizer({bytes([i]): i for i in range(256)}, special_tokens=SPECIAL, name="bytes")


@pytest.fixture(scope="session")
def tiny_v1() -> CausalLM:
    """The checkpoint of the golden data: 512 rows, trained at 32 tokens, dynamic NTK and LogN."""
    model = CausalLM(ModelConfig.from_dict(json.loads((TINY_V1 / "config.json").read_text())))
    model.load_state_dict(load_file(TINY_V1 / "model.safetensors"))
    return model.eval()


@pytest.fixture(scope="session")
def tiny_qwen2() -> CausalLM:
    """Grouped KV heads and tied embeddings; twelve padding rows."""
    config = ModelConfig(
        architecture="qwen2", vocab_size=272, hidden_size=48, num_layers=2, num_heads=6, num_kv_heads=2,
        head_dim=8, ffn_size=80, rotary_dim=8, rope_base=1e6, seq_length=200, max_positions=200,
        tied_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return CausalLM(config).initialize(3).eval()


@pytest.fixture(params=["tiny_v1", "tiny_qwen2"])
def tiny(request: pytest.FixtureRequest) -> CausalLM:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def scripted() -> Callable[..., ScriptedLM]:
    return ScriptedLM
