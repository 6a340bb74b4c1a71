"""GPTQ folders of different bits, packed here number by number as GPTQModel documents the format."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from conversions import chat_folder, stored
from safetensors.torch import save_file

QWEN2 = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.up_proj", "mlp.gate_proj", "mlp.down_proj")  # fmt: skip
V1 = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
BASE = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False, "quant_method": "gptq",
        "checkpoint_format": "gptq"}  # fmt: skip


def decided(dynamic: dict[str, dict], module: str) -> dict | None:
    """What GPTQModel and vLLM make of `dynamic`, restated: the first that matches, negative or positive."""
    for key, fields in dynamic.items():
        sign, pattern = (key[:2], key[2:]) if key[:2] in ("+:", "-:") else ("+:", key)
        if re.compile(pattern).match(module):
            return None if sign == "-:" else {**BASE, **fields}
    return BASE


def packed(weight: torch.Tensor, bits: int, group: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Words of a weight [out, in] rounded to nearest with the middle as zero, and the values they mean."""
    w = weight.float().numpy()
    rows, columns = w.shape
    group = columns if group == -1 else group
    middle, per_word = 1 << (bits - 1), 32 // bits
    peak = np.abs(w.reshape(rows, -1, group)).max(-1)
    scale = (peak / (middle - 1)).astype(np.float16)
    wide = np.repeat(scale.astype(np.float32), group, axis=1)
    codes = np.clip(np.round(w / wide) + middle, 0, 2 * middle - 1).astype(np.uint64)
    qweight = np.zeros((columns // per_word, rows), np.uint64)
    for column in range(columns):
        qweight[column // per_word] |= codes[:, column] << np.uint64(bits * (column % per_word))
    word = sum((middle - 1) << (bits * at) for at in range(per_word))  # zeros are stored minus one
    tensors = {
        "qweight": qweight.astype(np.uint32).view(np.int32),
        "qzeros": np.full((columns // group, rows // per_word), word, np.uint32).view(np.int32),
        "scales": scale.T.copy(),
        "g_idx": (np.arange(columns) // group).astype(np.int32),
    }
    values = wide * (codes.astype(np.float32) - middle)
    return {kind: torch.from_numpy(value) for kind, value in tensors.items()}, torch.from_numpy(values)


def mixed(path: Path, dynamic: dict[str, dict], layout: str = "qwen2", **other) -> dict[str, torch.Tensor]:
    """A chat folder whose linear layers are packed as `dynamic` says; the stored names' true values."""
    chat_folder(path, layout, **other)
    tensors, values = stored(path), {}
    names, block = (QWEN2, "model.layers") if layout == "qwen2" else (V1, "transformer.h")
    for module in [f"{block}.{n}.{name}" for n in range(2) for name in names]:
        weight = tensors[f"{module}.weight"]
        fields = decided(dynamic, module)
        if fields is None:
            values[module] = weight
            continue
        del tensors[f"{module}.weight"]
        words, values[module] = packed(weight, fields["bits"], fields["group_size"])
        tensors |= {f"{module}.{kind}": value for kind, value in words.items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    set_quantization(path, {**BASE, "dynamic": dynamic})
    return values


def set_quantization(path: Path, fields: dict) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": fields}))
