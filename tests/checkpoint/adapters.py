"""Adapters to merge, drawn at random, as peft writes them; and transformers' Qwen2 to merge into."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qwenkit.model import ModelConfig

PREFIX = "base_model.model."


def transformers_model(config: ModelConfig, folder: Path, seed: int = 0) -> Any:
    """A random Qwen2ForCausalLM of the same shape, saved to `folder`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    fields = config.to_qwen2_dict()
    for key in ("architectures", "model_type", "torch_dtype"):
        fields.pop(key, None)
    model = Qwen2ForCausalLM(Qwen2Config(**fields)).float().eval()
    for name, parameter in model.named_parameters():
        # zeros and ones would hide a mix-up, and small weights the adapter
        parameter.data.normal_(0.5 if name.endswith("bias") or "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder)
    return model


def trained(model: Any, folder: Path, seed: int = 1, **fields: Any) -> Any:
    """peft's model with every trainable value drawn at random, saved to `folder`."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **fields)).eval()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * 0.1
                # The magnitudes of DoRA are lengths, which training moves a little.
                parameter.data = parameter.data * (1 + noise) if "magnitude" in name else noise
        wrapped.save_pretrained(folder)
    return wrapped


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], **fields: Any) -> Path:
    """An adapter of rank 4 and alpha 8, unless `fields` say otherwise; names without peft's prefix."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "Qwen/Base", **fields}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({PREFIX + name: t.contiguous() for name, t in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip
    return folder


def pair(module: str, rows: int, columns: int, rank: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """A and B for one linear layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, columns, generator=generator) * 0.1,
        f"{module}.lora_B.weight": torch.randn(rows, rank, generator=generator) * 0.1,
    }


def change(folder: Path, **fields: Any) -> None:
    """Other fields in adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")
