"""A small random model and the folders it is written to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from qwenkit.model import CausalLM, ModelConfig

DATA = Path(__file__).parents[1] / "data"


def small_config(**other) -> ModelConfig:
    shape = {
        "architecture": "qwen2", "vocab_size": 96, "hidden_size": 64, "num_layers": 2, "num_heads": 4,
        "num_kv_heads": 2, "head_dim": 16, "ffn_size": 96, "rotary_dim": 16, "seq_length": 64,
        "max_positions": 64,
    }  # fmt: skip
    return ModelConfig(**{**shape, **other})


def small_model(seed: int = 0, **other) -> CausalLM:
    model = CausalLM(small_config(initializer_range=0.3, **other)).initialize(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "ln_" in name:  # zeros and ones would hide a mix-up
            parameter.data.normal_(0.5, 0.3, generator=generator)
    return model.eval().requires_grad_(False)


class Folder:
    """A copy of tests/data/tiny_v1 that a test may damage."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        shutil.copytree(DATA / source, path, ignore=shutil.ignore_patterns("golden.*"))

    @property
    def config(self) -> dict:
        return json.loads((self.path / "config.json").read_text())

    def set_config(self, **changes) -> None:
        config = {key: value for key, value in (self.config | changes).items() if value is not None}
        (self.path / "config.json").write_text(json.dumps(config))

    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / "model.safetensors")

    def save(self, tensors: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
        save_file({key: value.clone() for key, value in tensors.items()}, self.path / name)

    def shard(self, count: int = 2) -> list[str]:
        """Replace the one file by `count` shards and an index; returns their names."""
        tensors = self.tensors()
        (self.path / "model.safetensors").unlink()
        names = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
        weight_map = {}
        for n, name in enumerate(names):
            part = dict(list(tensors.items())[n::count])
            self.save(part, name)
            weight_map |= dict.fromkeys(part, name)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (self.path / "model.safetensors.index.json").write_text(json.dumps(index))
        return names
