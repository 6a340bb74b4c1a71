"""Write a checkpoint folder: weights in shards, configuration, generation defaults, tokenizer.

The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from qwenkit.checkpoint.generation_config import generation_dict
from qwenkit.checkpoint.layout import cast, to_qwen2, to_v1
from qwenkit.checkpoint.safetensors_writer import PlannedTensor, write_safetensors
from qwenkit.checkpoint.store import disk_errors, remove, sync
from qwenkit.core import CheckpointError, DownloadError, GenerationConfig, UnsupportedError
from qwenkit.model import ModelConfig

if TYPE_CHECKING:
    from qwenkit.text import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000


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
    folder = Path(folder).absolute()
    tensors = _planned(weights)
    if layout == "qwen-v1":
        config, tensors = to_v1(config, tensors)
        described = config.to_v1_dict()
    else:
        if config.tied_embeddings:
            tensors = [tensor for tensor in tensors if tensor.name != "lm_head.weight"]
        tensors = to_qwen2(config, tensors)
        described = config.to_qwen2_dict()
    described["torch_dtype"] = str(dtype).removeprefix("torch.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder} exists and is not an empty folder.", "Choose a new name for the output."
        )
    fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        with disk_errors(folder, "writing"):
            fresh.mkdir(parents=True)
            _write_shards(fresh, cast(tensors, dtype), max_shard_bytes)
            _write_json(fresh / "config.json", described)
            if generation is not None:
                _write_json(fresh / "generation_config.json", generation_dict(generation))
            if tokenizer is not None:
                _write_tokenizer(fresh, tokenizer, config, generation, layout)
            sync(fresh)
            os.replace(fresh, folder)
    except DownloadError as error:  # the name disk_errors has for a full disk
        raise CheckpointError(error.problem, "Free space there, or write to another folder.") from error
    finally:
        remove(fresh)


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


def _write_shards(folder: Path, tensors: Sequence[PlannedTensor], max_shard_bytes: int) -> None:
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    metadata = {"format": "pt"}  # transformers refuses files without it
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", shards[0], metadata)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard, metadata)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(tensor.nbytes for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_tokenizer(
    folder: Path,
    tokenizer: Tokenizer,
    config: ModelConfig,
    generation: GenerationConfig | None,
    layout: Literal["qwen-v1", "qwen2"],
) -> None:
    from qwenkit.text.pretokenize import QWEN

    generation = generation or GenerationConfig()
    tokenizer.save_tokenizer_json(
        folder,
        chat_template="chatml" if generation.chat_format == "chatml" else None,
        model_max_length=config.max_positions,
        default_system=generation.default_system,
    )
    if layout == "qwen-v1" and tokenizer.nfc and tokenizer.pretokenizer == QWEN:
        # A rank file says nothing of how text is split, and readers of it know only Qwen's way.
        tokenizer.save_tiktoken(folder / "qwen.tiktoken")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
