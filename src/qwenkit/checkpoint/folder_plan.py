"""What a checkpoint folder will hold, known before any weight is read, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from qwenkit.checkpoint.generation_config import generation_dict
from qwenkit.checkpoint.safetensors_writer import PlannedTensor, write_safetensors
from qwenkit.core import CheckpointError, GenerationConfig
from qwenkit.model import ModelConfig

if TYPE_CHECKING:
    from qwenkit.text import Tokenizer

MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, kw_only=True)
class FolderPlan:
    """A folder of weights in shards, configuration, generation defaults and tokenizer.

    config and tensors: in the shape and under the names of `layout`; dtype: stated as that of the weights.
    tokenizer, generation: written unless None. chat_template: written with the tokenizer of any model;
    without one, a chat model gets ChatML's. quantization: the fields of quantize_config.json.
    note: becomes README.txt.
    """

    layout: Literal["qwen-v1", "qwen2"]
    config: ModelConfig
    tensors: Sequence[PlannedTensor]
    dtype: torch.dtype
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    generation: GenerationConfig | None = None
    quantization: Mapping[str, Any] | None = None
    note: str = ""
    max_shard_bytes: int = MAX_SHARD_BYTES

    def __post_init__(self) -> None:
        if self.max_shard_bytes < 1:
            raise CheckpointError(
                f"Shards of at most {self.max_shard_bytes} bytes.", "Give a size above 0, for example 5GB."
            )

    @property
    def files(self) -> dict[str, Sequence[PlannedTensor]]:
        """Name of every file of the folder -> the tensors it will hold; weights first."""
        others = ["config.json"]
        others += ["model.safetensors.index.json"] if len(self._shards) > 1 else []
        others += ["generation_config.json"] if self.generation is not None else []
        others += ["quantize_config.json"] if self.quantization is not None else []
        if self.tokenizer is not None:
            others += ["tokenizer.json", "tokenizer_config.json"]
            others += ["qwen.tiktoken"] if self._as_rank_file(self.tokenizer) else []
        others += ["README.txt"] if self.note else []
        return {**self._shards, **dict.fromkeys(others, ())}

    def write(self, folder: Path) -> None:
        """Write all of it into `folder`, which is there and empty; one tensor is held at a time."""
        metadata = {"format": "pt"}  # transformers refuses files without it
        for name, tensors in self._shards.items():
            write_safetensors(folder / name, tensors, metadata)
        if len(self._shards) > 1:
            weight_map = {tensor.name: name for name, tensors in self._shards.items() for tensor in tensors}
            total = sum(tensor.nbytes for tensor in self.tensors)
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            _write_json(folder / "model.safetensors.index.json", index)
        _write_json(folder / "config.json", self._config_json())
        if self.generation is not None:
            _write_json(folder / "generation_config.json", generation_dict(self.generation))
        if self.quantization is not None:
            _write_json(folder / "quantize_config.json", self.quantization)
        if self.tokenizer is not None:
            self._write_tokenizer(folder, self.tokenizer)
        if self.note:
            (folder / "README.txt").write_text(self.note, encoding="utf-8")

    @cached_property
    def _shards(self) -> dict[str, Sequence[PlannedTensor]]:
        shards: list[list[PlannedTensor]] = [[]]
        filled = 0
        for tensor in self.tensors:
            if shards[-1] and filled + tensor.nbytes > self.max_shard_bytes:
                shards.append([])
                filled = 0
            shards[-1].append(tensor)
            filled += tensor.nbytes
        if len(shards) == 1:
            return {"model.safetensors": shards[0]}
        return {
            f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
            for number, shard in enumerate(shards, 1)
        }

    def _config_json(self) -> dict[str, Any]:
        described = self.config.to_v1_dict() if self.layout == "qwen-v1" else self.config.to_qwen2_dict()
        described["torch_dtype"] = str(self.dtype).removeprefix("torch.")
        if self.quantization is not None:
            described["quantization_config"] = dict(self.quantization)
        return described

    def _as_rank_file(self, tokenizer: Tokenizer) -> bool:
        """A rank file says nothing of how text is split, and readers of it know only Qwen's way."""
        from qwenkit.text.pretokenize import QWEN

        return self.layout == "qwen-v1" and tokenizer.nfc and tokenizer.pretokenizer == QWEN

    def _write_tokenizer(self, folder: Path, tokenizer: Tokenizer) -> None:
        generation = self.generation or GenerationConfig()
        chat = generation.chat_format == "chatml"
        tokenizer.save_tokenizer_json(
            folder,
            chat_template=self.chat_template or ("chatml" if chat else None),
            model_max_length=(
                self.config.max_positions if self.layout == "qwen-v1" else self.config.plain_length
            ),
            default_system=generation.default_system,
            ends_turns=chat,
        )
        if self._as_rank_file(tokenizer):
            tokenizer.save_tiktoken(folder / "qwen.tiktoken")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
