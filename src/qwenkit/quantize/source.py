"""The checkpoint to be quantized, one block of it in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from qwenkit.checkpoint import Checkpoint, PlannedTensor
from qwenkit.checkpoint.empty_model import empty_model
from qwenkit.core import RequestError
from qwenkit.model import Block, ModelConfig
from qwenkit.quantize.layers import LAYERS

if TYPE_CHECKING:
    from qwenkit.quantize.requantized import StoredLayer


class Source:
    """An opened checkpoint whose linear layers are floats, or blocks of a GGUF read as floats.

    dtype: of the computation, in which embedding, norms and biases are given; weights of linear layers come
    as they are stored, for they are rounded. Raises RequestError for GPTQ, CheckpointError for headers
    that do not fit, TokenizerError.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        if checkpoint.gptq is not None:
            raise RequestError(
                f"{checkpoint.path} is quantized already: {checkpoint.quantization}.",
                "Start from the 16-bit checkpoint; rounding twice only loses.",
            )
        self.checkpoint, self.dtype = checkpoint, dtype
        self.tokenizer = checkpoint.tokenizer()
        self.config: ModelConfig = checkpoint.config
        self.layout: Literal["qwen-v1", "qwen2"] = (
            "qwen-v1" if self.config.architecture == "qwen" else "qwen2"
        )
        self.kept_dtype = torch.bfloat16 if checkpoint.dtype == torch.float32 else checkpoint.dtype
        self._planned = {tensor.name: tensor for tensor in self._read(checkpoint)}
        self._blocks = empty_model(self.config).transformer.h

    def _read(self, checkpoint: Checkpoint) -> Sequence[PlannedTensor]:
        return checkpoint.planned(checkpoint.dtype)

    @property
    def nbytes(self) -> int:
        """Of the tensors as they are stored."""
        return sum(entry.nbytes for entry in self.checkpoint.entries())

    def stored(self, number: int) -> Mapping[str, StoredLayer]:
        """What the layers of a block are rounded from again; none of a source in 16 bits."""
        return {}

    def block(self, number: int) -> Block:
        """A block with its weights; the caller drops it before asking for the next."""
        block = cast(Block, self._blocks[number])
        for name, _ in list(block.named_parameters()):
            owner, _, kind = name.rpartition(".")
            value = self._planned[f"transformer.h.{number}.{name}"].read()
            if owner not in LAYERS or kind == "bias":
                value = value.to(self.dtype)
            setattr(block.get_submodule(owner), kind, nn.Parameter(value, requires_grad=False))
        self._blocks[number] = nn.Identity()
        return block

    def forget(self) -> None:
        """Blocks may be asked for again."""
        self._blocks = empty_model(self.config).transformer.h

    def tensor(self, name: str) -> Tensor:
        """embedding, final norm or output projection, in `dtype`."""
        if name == "lm_head.weight" and self.config.tied_embeddings:
            name = "transformer.wte.weight"
        return self._planned[name].read().to(self.dtype)

    def kept(self) -> list[PlannedTensor]:
        """What is not rounded: embedding, norms, biases, output projection; canonical names."""
        rounded = tuple(f".{layer}.weight" for layer in LAYERS)
        return [tensor for name, tensor in self._planned.items() if not name.endswith(rounded)]

    def identity(self) -> dict[str, Any]:
        """Stands for the files read: a changed one has another time or size."""
        files = self.checkpoint.files
        listed = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        return {
            "source": str(Path(self.checkpoint.path).absolute()),
            "files": hashlib.sha256(repr(listed).encode()).hexdigest(),
        }
