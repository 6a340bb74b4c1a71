"""What a token costs: bytes of weights read, operations, and the kernels that do it."""

from __future__ import annotations

from collections import Counter

from torch import nn

from qwenkit.kernels import native
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.quant import AffineLinear, PackedBf16Linear, PackedLinear


def weight_bytes(model: CausalLM) -> int:
    """Bytes one decoded token reads: all weights, but the embedding only if it is also the output layer."""
    embedding = model.transformer.wte.weight
    held = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}
    head = {t.data_ptr() for t in (*model.lm_head.parameters(), *model.lm_head.buffers())}
    if embedding.data_ptr() not in head:
        del held[embedding.data_ptr()]
    return sum(held.values())


def linear_operations(config: ModelConfig) -> int:
    """Multiplications and additions of the blocks' linear layers for one token; no attention, no output."""
    h = config.hidden_size
    layer = config.qkv_size * h + config.num_heads * config.head_dim * h + 3 * h * config.ffn_size
    return 2 * config.num_layers * layer


def output_operations(config: ModelConfig) -> int:
    """The same for the output layer, which prefill runs once a prompt."""
    return 2 * config.hidden_size * config.vocab_size


def kernels(model: CausalLM, rows: int) -> list[str]:
    """Which kernel multiplies that many rows in how many layers, the most used first."""
    found: Counter[str] = Counter()
    for module in model.modules():
        if isinstance(module, PackedLinear):
            exact = module.activations == "16bit"
            path = native.extension().affine_path(
                rows, exact, native.TYPES[model.transformer.wte.weight.dtype]
            )
            found[f"int{module.shape.bits}: {path}"] += 1
        elif isinstance(module, PackedBf16Linear):
            found[f"bfloat16: {native.extension().bf16_path(rows)}"] += 1
        elif isinstance(module, AffineLinear):
            found[f"int{module.bits}: torch, dequantized for every product (SLOW)"] += 1
        elif isinstance(module, nn.Linear):
            found[f"{str(module.weight.dtype).removeprefix('torch.')}: torch"] += 1
    return [f"{name} ({count} layers)" for name, count in found.most_common()]


def peak_kind(kernel: str) -> str | None:
    """The limit of `native.peak` that bounds a kernel named by `kernels`; None for torch's own."""
    words = {"AMX int8": "int8_amx", "AMX bf16": "bf16_amx", "VNNI": "int8_vnni", "float": "fma"}
    if "torch" in kernel:
        return None
    return next((kind for word, kind in words.items() if word in kernel.partition(":")[2]), None)
