"""Small random models with the start of the real vocabulary, and how tests quantize them."""

from __future__ import annotations

from pathlib import Path

import torch

from qwenkit.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from qwenkit.core import GenerationConfig
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.quant.gptq_rounding import Rounding
from qwenkit.quantize import Settings
from qwenkit.text import Tokenizer

TEXT = Path(__file__).parents[2] / "README.md"


def config(**other) -> ModelConfig:
    shape = {
        "architecture": "qwen2", "vocab_size": 4096, "hidden_size": 64, "num_layers": 3, "num_heads": 4,
        "num_kv_heads": 2, "head_dim": 16, "ffn_size": 96, "rotary_dim": 16, "seq_length": 256,
        "max_positions": 256, "initializer_range": 0.3,
    }  # fmt: skip
    return ModelConfig(**{**shape, **other})


def settings(**other) -> Settings:
    shape = {"rounding": Rounding(4, 32), "calibration": str(TEXT), "samples": 6, "length": 64}
    return Settings(**{**shape, "dtype": "float32", **other})


def make(folder: Path, vocabulary: Path, layout, dtype=torch.float32, **other) -> Checkpoint:
    model = CausalLM(config(**other)).initialize(seed=3)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "ln_" in name:  # zeros and ones would hide a mix-up
            parameter.data.normal_(0.5, 0.3, generator=generator)
    ranks = folder.with_name("ranks.tiktoken")
    ranks.write_text("".join(vocabulary.read_text().splitlines(keepends=True)[:4000]))
    specials = {"<|endoftext|>": 4000, "<|im_start|>": 4001, "<|im_end|>": 4002}
    write_checkpoint(
        model,
        model.shape,
        Tokenizer.from_tiktoken(ranks, special_tokens=specials),
        folder,
        layout=layout,
        dtype=dtype,
        generation=GenerationConfig(chat_format="chatml", stop_token_ids=(4000, 4002)),
    )
    return open_checkpoint(folder)
