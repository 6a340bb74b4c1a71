"""How each layout names the modules of the model (reference: model section 2; llama.cpp's tensor names).

The canonical names are those of the v1 checkpoints. Where a layout keeps queries, keys and values apart,
their rows are stacked in that order into c_attn.
"""

from __future__ import annotations

import re
from typing import Literal

Layout = Literal["qwen-v1", "qwen2", "gguf"]

_V1 = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.w1", "mlp.w2", "mlp.c_proj")

_Parts = dict[str, tuple[str, ...]]

_QWEN2: _Parts = {
    "ln_1": ("input_layernorm",),
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.o_proj",),
    "ln_2": ("post_attention_layernorm",),
    "mlp.w1": ("mlp.up_proj",),
    "mlp.w2": ("mlp.gate_proj",),
    "mlp.c_proj": ("mlp.down_proj",),
}

_GGUF: _Parts = {
    "ln_1": ("attn_norm",),
    "attn.c_attn": ("attn_q", "attn_k", "attn_v"),
    "attn.c_proj": ("attn_output",),
    "ln_2": ("ffn_norm",),
    "mlp.w1": ("ffn_up",),
    "mlp.w2": ("ffn_gate",),
    "mlp.c_proj": ("ffn_down",),
}

_INERT = re.compile(r"(.*\.)?(rotary_emb\.inv_freq|attn\.masked_bias|attn\.logn_tensor)")
"""Buffers that old files carry and every loader computes anew."""


def stored_modules(layout: Layout, num_layers: int, *, fused_qkv: bool = False) -> dict[str, tuple[str, ...]]:
    """Canonical module name -> stored module names whose rows make it up, in order.

    fused_qkv: the GGUF of a v1 model, which keeps c_attn whole as `attn_qkv`.
    """
    outer: _Parts
    inner: _Parts
    if layout == "qwen-v1":
        outer = {name: (name,) for name in ("transformer.wte", "transformer.ln_f", "lm_head")}
        inner, prefix = {name: (name,) for name in _V1}, "transformer.h.{}."
    elif layout == "qwen2":
        outer = {
            "transformer.wte": ("model.embed_tokens",),
            "transformer.ln_f": ("model.norm",),
            "lm_head": ("lm_head",),
        }
        inner, prefix = _QWEN2, "model.layers.{}."
    else:
        outer = {
            "transformer.wte": ("token_embd",),
            "transformer.ln_f": ("output_norm",),
            "lm_head": ("output",),
        }
        inner, prefix = dict(_GGUF), "blk.{}."
        if fused_qkv:
            inner["attn.c_attn"] = ("attn_qkv",)
    modules = dict(outer)
    for layer in range(num_layers):
        for name, stored in inner.items():
            modules[f"transformer.h.{layer}.{name}"] = tuple(prefix.format(layer) + part for part in stored)
    return modules


def is_inert(name: str) -> bool:
    """True for stored tensors that carry no information and may be ignored."""
    return _INERT.fullmatch(name) is not None
