"""Small models and a byte tokenizer: enough to generate real text in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qwenkit.model import Batch, CausalLM, ModelConfig
from qwenkit.text import Tokenizer

TINY_V1 = Path(__file__).parents[1] / "data" / "tiny_v1"
END, START, STOP, EXTRA = 256, 257, 258, 259
SPECIAL = {"<|endoftext|>": END, "<|im_start|>": START, "<|im_end|>": STOP, "<|extra_0|>": EXTRA}


class ScriptedLM(CausalLM):
    """Says `script` after any prompt of `prompt_length` tokens, whatever the prompt is; counts its passes."""

    def __init__(self, script: Sequence[int], prompt_length: int, rows: int = 272) -> None:
        super().__init__(
            ModelConfig(
                vocab_size=rows,
                hidden_size=4,
                num_layers=1,
                num_heads=1,
                num_kv_heads=1,
                head_dim=4,
                ffn_size=4,
                rotary_dim=4,
                seq_length=4096,
                max_positions=4096,
            )
        )
        self.script = list(script)
        self.prompt_length = prompt_length
        self.passes = 0
        self.poison: float | None = None
        self.interrupt_at: int | None = None

    def forward(self, tokens: Tensor, batch: Batch, last: int = 0) -> Tensor:
        self.passes += 1
        if self.passes == self.interrupt_at:
            raise KeyboardInterrupt
        logits = torch.zeros(tokens.shape[0], 1, self.shape.vocab_size)
        for row, position in enumerate(batch.positions[:, -1].tolist()):
            logits[row, 0, self.script[position + 1 - self.prompt_length]] = 50.0
        if self.poison is not None:
            logits[0, 0, 3] = self.poison
        return logits


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
