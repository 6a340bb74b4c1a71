"""Handing a model's blocks to the compiled kernels as a whole, where all their parts are theirs."""

from __future__ import annotations

from typing import cast

from torch import nn

from qwenkit.engine.paged_cache import PagedCache
from qwenkit.kernels import native
from qwenkit.kernels.native_paged import NativePagedLayer
from qwenkit.kernels.native_stack import NativeBlock, NativeProduct, NativeStack
from qwenkit.model import Block, CausalLM
from qwenkit.quant import PackedBf16Linear, PackedLinear


def native_stack(model: CausalLM, cache: PagedCache) -> NativeStack | None:
    """The blocks of `model` over `cache`, or None where a linear layer or the cache is torch's."""
    if not native.ready():
        return None
    blocks = []
    for module, layer, window in zip(model.transformer.h, cache.layers, cache.windows, strict=True):
        block = cast(Block, module)
        linears = (block.attn.c_attn, block.attn.c_proj, block.mlp.w1, block.mlp.w2, block.mlp.c_proj)
        products = [_product(linear) for linear in linears]
        if not isinstance(layer, NativePagedLayer) or None in products:
            return None
        qkv, attended, up, gate, down = (product for product in products if product is not None)
        norms = block.ln_1.weight.detach(), block.ln_2.weight.detach()
        blocks.append(NativeBlock(norms[0], qkv, layer, attended, norms[1], up, gate, down, window))
    shape = model.shape
    return NativeStack(
        blocks,
        hidden=shape.hidden_size,
        inner=shape.ffn_size,
        eps=shape.norm_eps,
        dtype=model.transformer.wte.weight.dtype,
    )


def _product(linear: nn.Module) -> NativeProduct | None:
    if isinstance(linear, PackedLinear):
        return NativeProduct(linear.weight(), exact=linear.activations == "16bit")
    if isinstance(linear, PackedBf16Linear):
        return NativeProduct(linear.weight())
    return None
