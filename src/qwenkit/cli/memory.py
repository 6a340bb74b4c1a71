"""How much memory a model needs, from its configuration alone."""

from __future__ import annotations

from qwenkit.model import ModelConfig

GROUP = 128  # columns that share a scale and a minimum in a quantized matrix
_PAIR = 4  # bytes of such a scale and minimum, 16 bits each


def size(count: float) -> str:
    """Bytes in binary units, as memory is sold and reported: 201326592 -> '192.0 MiB'."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def weight_bytes(config: ModelConfig, bits: int) -> int:
    """Bytes of all weights with the matrices of the blocks in 16, 8 or 4 bits.

    Below 16 bits every group of 128 columns carries a scale and a minimum; embeddings, output
    projection, norms and biases stay in 16 bits, as in the published Int4 and Int8 checkpoints.
    """
    if bits == 16:
        return 2 * config.parameter_count
    h = config.hidden_size
    matrices = config.num_layers * (
        config.qkv_size * h + config.num_heads * config.head_dim * h + 3 * h * config.ffn_size
    )
    packed = matrices * bits // 8 + matrices // GROUP * _PAIR
    return packed + 2 * (config.parameter_count - matrices)


def cache_bytes(config: ModelConfig, tokens: int, bits: int) -> int:
    """Bytes of keys and values of `tokens` tokens; in 8 bits with a scale and minimum per token and head."""
    if bits == 16:
        return tokens * config.kv_bytes_per_token(2)
    heads = 2 * config.num_layers * config.num_kv_heads
    return tokens * (config.kv_bytes_per_token(1) + _PAIR * heads)
