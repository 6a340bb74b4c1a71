"""The same model under other names: canonical tensors rewritten for the v1, the Qwen2 or the GGUF layout.

GPTQ layers are cut along their outputs like any other; only the axis of each of their tensors differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from qwenkit.checkpoint.names import stored_modules
from qwenkit.checkpoint.safetensors_writer import PlannedTensor
from qwenkit.core import UnsupportedError
from qwenkit.model import ModelConfig

_OUTPUT_AXIS = {"weight": 0, "bias": 0, "qweight": 1, "qzeros": 1, "scales": 1, "g_idx": None}
"""Along which axis a tensor of a linear layer holds its outputs; g_idx is about inputs alone."""


def to_v1(config: ModelConfig, tensors: Sequence[PlannedTensor]) -> tuple[ModelConfig, list[PlannedTensor]]:
    """Express any model in the shape v1 knows: one KV head for each query head, an untied output projection.

    Each KV head is repeated for its queries, bias included; the logits stay the same. Tensors come and go
    under canonical names. A v1 model comes back as it was.
    """
    expanded = replace(config, architecture="qwen", num_kv_heads=config.num_heads, tied_embeddings=False)
    result = []
    for tensor in tensors:
        if ".attn.c_attn." in tensor.name and config.num_kv_heads != config.num_heads:
            result.append(_with_repeated_heads(config, tensor))
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
    return renamed(config, tensors, stored_modules("qwen2", config.num_layers))


def renamed(
    config: ModelConfig, tensors: Sequence[PlannedTensor], modules: Mapping[str, tuple[str, ...]]
) -> list[PlannedTensor]:
    """Canonical tensors under the names of names.stored_modules; c_attn is split where that has three.

    Raises UnsupportedError for packed heads that end inside a 32-bit word.
    """
    result = []
    for tensor in tensors:
        module, _, kind = tensor.name.rpartition(".")
        stored = modules[module]
        if len(stored) == 1:
            result.append(replace(tensor, name=f"{stored[0]}.{kind}"))
            continue
        axis = _OUTPUT_AXIS[kind]
        if axis is None:
            result += [replace(tensor, name=f"{part}.{kind}") for part in stored]
            continue
        whole = _Whole(tensor, len(stored))
        start = 0
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        for part, count in zip(stored, heads, strict=True):
            size = count * _slots_of_head(config, tensor, axis)
            shape = (*tensor.shape[:axis], size, *tensor.shape[axis + 1 :])
            read = partial(whole.part, axis, start, size)
            result.append(replace(tensor, name=f"{part}.{kind}", shape=shape, read=read))
            start += size
    return result


def cast(
    tensors: Sequence[PlannedTensor], dtype: torch.dtype, rounded: list[str] | None = None
) -> list[PlannedTensor]:
    """The same tensors in another float dtype.

    rounded: gets the name of each tensor that lost digits when it was read. Reading raises UnsupportedError
    for values that `dtype` cannot hold.
    """
    return [replace(t, dtype=dtype, read=partial(_cast, t, dtype, rounded)) for t in tensors]


def _cast(tensor: PlannedTensor, dtype: torch.dtype, rounded: list[str] | None) -> Tensor:
    held = tensor.read()
    if held.dtype == dtype:
        return held
    result = held.to(dtype)
    if torch.promote_types(held.dtype, dtype) == dtype:
        return result
    if not bool(torch.isfinite(result).all()):
        words = str(dtype).removeprefix("torch.")
        raise UnsupportedError(
            f"Tensor {tensor.name!r} has values that {words} cannot hold.", "Write bfloat16 or float32."
        )
    if rounded is not None and not torch.equal(result.to(held.dtype), held):
        rounded.append(tensor.name)
    return result


class _Whole:
    """A fused tensor that is read once for all its parts and forgotten with the last of them."""

    def __init__(self, tensor: PlannedTensor, parts: int) -> None:
        self._tensor = tensor
        self._parts = self._left = parts
        self._held: Tensor | None = None

    def part(self, axis: int, start: int, size: int) -> Tensor:
        held = self._tensor.read() if self._held is None else self._held
        self._left = self._left - 1 or self._parts
        self._held = None if self._left == self._parts else held
        return held.narrow(axis, start, size)


def _slots_of_head(config: ModelConfig, tensor: PlannedTensor, axis: int) -> int:
    """Elements of a c_attn tensor for one head along `axis`: channels, or words that hold their zeros."""
    heads = config.num_heads + 2 * config.num_kv_heads
    if tensor.shape[axis] % heads:
        raise UnsupportedError(
            f"{tensor.name!r} packs {config.head_dim} channels of a head into "
            f"{tensor.shape[axis] / heads:g} words of 32 bits, which cannot be cut.",
            "Keep the layout it is in, or start from the 16-bit checkpoint.",
        )
    return tensor.shape[axis] // heads


def _with_repeated_heads(config: ModelConfig, tensor: PlannedTensor) -> PlannedTensor:
    axis = _OUTPUT_AXIS[tensor.name.rpartition(".")[2]]
    if axis is None:
        return tensor
    slots = _slots_of_head(config, tensor, axis)
    shape = (*tensor.shape[:axis], 3 * config.num_heads * slots, *tensor.shape[axis + 1 :])
    return replace(tensor, shape=shape, read=partial(_repeat_kv, tensor, config, axis, slots))


def _repeat_kv(tensor: PlannedTensor, config: ModelConfig, axis: int, slots: int) -> Tensor:
    fused = tensor.read().movedim(axis, 0)
    queries = config.num_heads * slots
    shared = config.num_heads // config.num_kv_heads
    heads = fused[queries:].view(2 * config.num_kv_heads, slots, *fused.shape[1:])
    repeated = heads.repeat_interleave(shared, dim=0).flatten(0, 1)
    return torch.cat((fused[:queries], repeated)).movedim(0, axis)
