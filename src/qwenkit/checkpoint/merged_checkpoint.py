"""A base checkpoint with a LoRA adapter laid over it: to be written, quantized or run as any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qwenkit.checkpoint.adapter import Adapter
from qwenkit.checkpoint.adapter_changes import changes_of, unties
from qwenkit.checkpoint.checkpoint_base import Checkpoint
from qwenkit.checkpoint.conversion import Conversion, Target, plan_conversion
from qwenkit.checkpoint.loading import Loader
from qwenkit.checkpoint.merged_source import MergedSource

if TYPE_CHECKING:
    from qwenkit.text import Tokenizer


class MergedCheckpoint(Checkpoint):
    """What the base holds plus what the adapter adds; tokenizer, template and defaults are the base's.

    GPTQ layers of the base are floats here. merged_dtype: of the tensors that the adapter changes, by default
    that in which the base stores them. changes: by canonical name.

    Raises as `changes_of` and `unties`, CheckpointError for headers of the base that do not fit its
    configuration.
    """

    def __init__(
        self, base: Checkpoint, adapter: Adapter, *, merged_dtype: torch.dtype | None = None
    ) -> None:
        base.check()
        self.base, self.adapter = base, adapter
        self.path, self.layout, self.generation = base.path, base.layout, base.generation
        self.dtype, self.quantization = base.dtype, base.quantization
        changes = self.changes = changes_of(adapter, base.config, str(base.path))
        untied = base.config.tied_embeddings and unties(changes, adapter)
        self.config = replace(base.config, tied_embeddings=False) if untied else base.config
        self.merged = MergedSource(base.loader, changes, untied=untied, dtype=merged_dtype)
        self._source = self.merged
        self.notes = (*base.notes, *self._notes(untied))

    def _notes(self, untied: bool) -> Sequence[str]:
        config, changed = self.adapter.config, self.merged.changed
        kind = "DoRA" if config.dora else "rsLoRA" if config.rslora else "LoRA"
        yielded = [
            f"The {kind} adapter {self.adapter.path.name} is merged into {len(changed)} of "
            f"{len(self.merged.entries())} tensors, computed in float32 and rounded once."
        ]
        if untied:
            yielded.append(
                "Embedding and output, one matrix in the base, are two now: the adapter changes only one."
            )
        return yielded

    @property
    def has_tokenizer(self) -> bool:
        return self.base.has_tokenizer

    @property
    def chat_template(self) -> str | None:
        return self.base.chat_template

    def tokenizer(self) -> Tokenizer:
        return self.base.tokenizer()

    @property
    def dequantized(self) -> bool:
        return self.base.dequantized or self.base.gptq is not None

    @property
    def files(self) -> set[Path]:
        return self.base.files | self.adapter.files

    @cached_property
    def loader(self) -> Loader:
        return Loader(self.config, self.merged, self.base.loader.modules)

    @property
    def target(self) -> Target:
        """The layout to write it in: the base's, of a GGUF that which fits its architecture."""
        return "v1" if self.config.architecture == "qwen" else "qwen2"


def plan_merge(
    base: Checkpoint,
    adapter: Adapter,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> Conversion:
    """The folder of `base` with `adapter` merged, in the base's layout, ready to `write`.

    dtype: of float weights; by default each tensor keeps its own, and what was packed gets that of the other
    floats. A GPTQ base is written in floats: to quantize it again, see qwenkit.quantize. Raises as
    `MergedCheckpoint` and `plan_conversion`.
    """
    merged = MergedCheckpoint(base, adapter, merged_dtype=dtype)
    plan = plan_conversion(merged, merged.target, dtype=dtype, max_shard_bytes=max_shard_bytes)
    return replace(plan, doing="Merging")
