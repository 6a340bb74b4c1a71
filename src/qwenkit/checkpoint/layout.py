"""The same model under other names: canonical tensors rewritten for the v1 or the Qwen2 layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from qwenkit.checkpoint.names import stored_modules
from qwenkit.checkpoint.safetensors_writer import PlannedTensor
from qwenkit.core import UnsupportedError
from qwenkit.model import ModelConfig


def to_v1(config: ModelConfig, tensors: Sequence[PlannedTensor]) -> tuple[ModelConfig, list[PlannedTensor]]:
    """Express any model in the shape v1 knows: one KV head for each query head, an untied output projection.

    Each KV head is repeated for its queries, bias included; the logits stay the same. Tensors come and go
    under canonical names. A v1 model comes back as it was.
    """
    if config.architecture == "qwen" and not config.tied_embeddings:
        return config, list(tensors)
    expanded = replace(
        config,
        architecture="qwen",
        num_kv_heads=config.num_heads,
        tied_embeddings=False,
    )
    result = []
    for tensor in tensors:
        if ".attn.c_attn." in tensor.name:
            shape = (expanded.qkv_size, *tensor.shape[1:])
            read = partial(_repeat_kv, tensor, config)
            result.append(replace(tensor, shape=shape, read=read))
        else:
            result.append(tensor)
        if tensor.name == "transformer.wte.weight" and config.tied_embeddings:
            result.append(replace(tensor, name="lm_head.weight"))
    return expanded, result


def to_qwen2(config: ModelConfig, tensors: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """Canonical tensors under the names of the Qwen2 layout, with c_attn split into q, k and v.

    Raises UnsupportedError for partly rotated heads, which that layout cannot express.
    """
    if config.rotary_dim != config.head_dim:
        raise UnsupportedError(
            f"Only {config.rotary_dim} of {config.head_dim} channels of a head are rotated.",
            "The Qwen2 layout always rotates all; keep the v1 layout.",
        )
    names = stored_modules("qwen2", config.num_layers)
    result = []
    for tensor in tensors:
        module, _, kind = tensor.name.rpartition(".")
        stored = names[module]
        if len(stored) == 1:
            result.append(replace(tensor, name=f"{stored[0]}.{kind}"))
            continue
        start = 0
        for part, heads in zip(
            stored, (config.num_heads, config.num_kv_heads, config.num_kv_heads), strict=True
        ):
            rows = heads * config.head_dim
            read = partial(_rows, tensor, start, start + rows)
            result.append(PlannedTensor(f"{part}.{kind}", (rows, *tensor.shape[1:]), tensor.dtype, read))
            start += rows
    return result


def cast(tensors: Sequence[PlannedTensor], dtype: torch.dtype) -> list[PlannedTensor]:
    """The same tensors in another float dtype."""
    return [replace(t, dtype=dtype, read=partial(_cast, t, dtype)) for t in tensors]


def _cast(tensor: PlannedTensor, dtype: torch.dtype) -> Tensor:
    held = tensor.read()
    if held.dtype == dtype:
        return held
    result = held.to(dtype)
    if not bool(torch.isfinite(result).all()):
        words = str(dtype).removeprefix("torch.")
        raise UnsupportedError(
            f"Tensor {tensor.name!r} has values that {words} cannot hold.", "Write bfloat16 or float32."
        )
    return result


def _rows(tensor: PlannedTensor, start: int, end: int) -> Tensor:
    return tensor.read()[start:end]


def _repeat_kv(tensor: PlannedTensor, config: ModelConfig) -> Tensor:
    fused = tensor.read()
    queries = config.num_heads * config.head_dim
    shared = config.num_heads // config.num_kv_heads
    heads = fused[queries:].view(2 * config.num_kv_heads, config.head_dim, *fused.shape[1:])
    return torch.cat((fused[:queries], heads.repeat_interleave(shared, dim=0).flatten(0, 1)))
