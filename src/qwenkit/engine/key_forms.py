"""What the keys of a model's layers have in common, found by giving its projections random tokens.

Needs no text and no knowledge of how weights are kept. The same model gives the same forms.
"""

from __future__ import annotations

from typing import cast

import torch

from qwenkit.kernels.key_form import KeyForm
from qwenkit.kernels.paged import KVFormat
from qwenkit.model import Block, CausalLM

SAMPLES = 128
"""Tokens whose queries and keys say how large channels are, to about a tenth."""


@torch.inference_mode()
def key_forms(model: CausalLM, format: KVFormat) -> list[KeyForm]:
    """For a cache of a format of FORMED, one a layer, on the CPU.

    The normed hidden states of text are taken to be as random ones.
    """
    shape = model.shape
    weight = model.transformer.wte.weight
    samples = torch.randn(SAMPLES, shape.hidden_size, generator=torch.Generator().manual_seed(0))
    samples[0] = 0  # whose key is the bias
    samples = samples.to(weight.device, weight.dtype)
    split = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
    forms = []
    for module in model.transformer.h:
        block = cast(Block, module)
        qkv = block.attn.c_attn(samples * block.ln_1.weight).cpu()
        q, k, _ = qkv.view(SAMPLES, -1, shape.head_dim).split(split, dim=1)
        center = k[0] if format == "int4" else torch.zeros_like(k[0])  # of 8 bits, keys keep their bias
        form = KeyForm.of_samples(q[1:], k[1:], center, shape.rotary_dim)
        forms.append(form if format == "int4" else form.in_powers_of_two())
    return forms
