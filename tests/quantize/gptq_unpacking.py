"""GPTQ files read by numpy alone, from the description of the format (reference: model section 10)."""

from __future__ import annotations

import numpy as np
import torch

from qwenkit.model import ModelConfig

_QWEN2 = {
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.o_proj",),
    "mlp.w1": ("mlp.up_proj",),
    "mlp.w2": ("mlp.gate_proj",),
    "mlp.c_proj": ("mlp.down_proj",),
}


def one(tensors: dict[str, torch.Tensor], name: str, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [out, in] and values [out, in] of one stored layer, number by number."""
    per_word, mask = 32 // bits, (1 << bits) - 1
    qweight = tensors[f"{name}.qweight"].numpy().view(np.uint32)
    qzeros = tensors[f"{name}.qzeros"].numpy().view(np.uint32)
    rows = np.arange(qweight.shape[0] * per_word)
    codes = (qweight[rows // per_word] >> (bits * (rows % per_word))[:, None].astype(np.uint32)) & mask
    outs = np.arange(codes.shape[1])
    stored = (qzeros[:, outs // per_word] >> (bits * (outs % per_word)).astype(np.uint32)) & mask
    group = tensors[f"{name}.g_idx"].numpy()
    scale = tensors[f"{name}.scales"].float().numpy()[group]
    values = scale * (
        codes.astype(np.float32) - (stored[group].astype(np.float32) + 1)
    )  # unmasked, as exllama
    return codes.T, values.T


def unpacked(
    tensors: dict[str, torch.Tensor], config: ModelConfig, bits: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Canonical layer name -> codes uint8 and values float32 [out, in]."""
    found = {}
    for n in range(config.num_layers):
        for layer, parts in _QWEN2.items():
            name = f"transformer.h.{n}.{layer}"
            stored = [name] if config.architecture == "qwen" else [f"model.layers.{n}.{p}" for p in parts]
            pairs = [one(tensors, part, bits) for part in stored]
            codes, values = (np.concatenate(both) for both in zip(*pairs, strict=True))
            found[name] = torch.from_numpy(codes.astype(np.uint8)), torch.from_numpy(values)
    return found
