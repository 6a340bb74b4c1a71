"""Write a checkpoint folder from weights at hand: it appears whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from qwenkit.checkpoint.folder_plan import MAX_SHARD_BYTES, FolderPlan
from qwenkit.checkpoint.layout import cast, to_qwen2, to_v1
from qwenkit.checkpoint.output import appearing
from qwenkit.checkpoint.safetensors_writer import PlannedTensor
from qwenkit.core import GenerationConfig, UnsupportedError
from qwenkit.model import ModelConfig

if TYPE_CHECKING:
    from qwenkit.text import Tokenizer


def write_checkpoint(
    weights: nn.Module | Mapping[str, Tensor] | Sequence[PlannedTensor],
    config: ModelConfig,
    tokenizer: Tokenizer | None,
    folder: Path,
    *,
    layout: Literal["qwen-v1", "qwen2"],
    dtype: torch.dtype,
    generation: GenerationConfig | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `weights`, under canonical names, as a new folder in `layout` with float weights in `dtype`.

    One tensor is held at a time. For "qwen-v1", grouped KV heads and tied embeddings are expanded (`to_v1`).
    generation: written as generation_config.json; its chat_format decides whether the tokenizer files name
    a chat template. Raises CheckpointError if the folder exists and is not empty or the disk is full,
    UnsupportedError for packed weights or what the layout cannot express.
    """
    config, tensors = in_layout(layout, config, _planned(weights))
    plan = FolderPlan(
        layout=layout,
        config=config,
        tensors=cast(tensors, dtype),
        dtype=dtype,
        tokenizer=tokenizer,
        generation=generation,
        max_shard_bytes=max_shard_bytes,
    )
    with appearing(Path(folder), folder=True, nbytes=sum(t.nbytes for t in plan.tensors)) as fresh:
        plan.write(fresh)


def in_layout(
    layout: Literal["qwen-v1", "qwen2"], config: ModelConfig, tensors: Sequence[PlannedTensor]
) -> tuple[ModelConfig, list[PlannedTensor]]:
    """Canonical tensors in the shape and under the names of a folder layout. Raises as to_v1 and to_qwen2."""
    if layout == "qwen-v1":
        return to_v1(config, tensors)
    if config.tied_embeddings:
        tensors = [tensor for tensor in tensors if tensor.name != "lm_head.weight"]
    return config, to_qwen2(config, tensors)


def _planned(
    weights: nn.Module | Mapping[str, Tensor] | Sequence[PlannedTensor],
) -> list[PlannedTensor]:
    if isinstance(weights, nn.Module):
        buffers = [name for name, _ in weights.named_buffers()]
        if buffers:
            raise UnsupportedError(
                f"The model has packed weights ({buffers[0]}).",
                "Only float weights are written; start from those.",
            )
        return [PlannedTensor.of(name, tensor) for name, tensor in weights.named_parameters()]
    if isinstance(weights, Mapping):
        return [PlannedTensor.of(name, tensor) for name, tensor in weights.items()]
    return list(weights)
