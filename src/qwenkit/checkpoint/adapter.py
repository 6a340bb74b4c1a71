"""A LoRA adapter as peft saves it: the tensors of adapter_model.*, by the module and the part they play.

Knows no model: what the modules are, and what becomes of them, adapter_changes knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.checkpoint.adapter_config import FILE, LoRAConfig, read_lora_config
from qwenkit.checkpoint.safetensors_file import DTYPES, SafetensorsFile
from qwenkit.checkpoint.tensor_source import TensorSource
from qwenkit.checkpoint.torch_file import TorchFile
from qwenkit.core import CheckpointError

_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "bias of B",
    "lora_embedding_A": "embedding A",
    "lora_embedding_B": "embedding B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "modules_to_save.weight": "weight",
    "modules_to_save.bias": "bias",
    "base_layer.weight": "weight",  # beside an adapter of an embedding, peft saves the embedding too
    "base_layer.bias": "bias",
    "weight": "weight",
    "bias": "bias",
}
_NAME = re.compile(rf"(?P<module>.+?)\.(?P<part>{'|'.join(map(re.escape, _PARTS))})")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Adapter:
    """tensors: module, in the words of the model it was trained on -> part -> name of the tensor.

    Parts: A and B, their forms for an embedding, "bias of B" (added to the layer's), "magnitude" (DoRA), and
    "weight" and "bias", which stand in the place of the base's.
    """

    path: Path
    config: LoRAConfig
    tensors: Mapping[str, Mapping[str, str]]
    source: TensorSource

    def shape(self, module: str, part: str) -> tuple[int, ...]:
        return self.source.entry(self.tensors[module][part]).shape

    def read(self, module: str, part: str) -> Tensor:
        """In float32. Raises CheckpointError for NaN and infinity."""
        return self.source.read(self.tensors[module][part], torch.float32)

    @property
    def files(self) -> set[Path]:
        return {self.path / FILE, *(entry.file for entry in self.source.entries().values())}


def read_adapter(folder: Path) -> Adapter:
    """Open an adapter folder, reading headers only.

    Raises CheckpointError for a missing or damaged file and for tensors that are no part of a LoRA adapter,
    UnsupportedError for what is not understood.
    """
    folder = Path(folder)
    config = read_lora_config(folder)
    source = _weights(folder)
    tensors: dict[str, dict[str, str]] = {}
    for name, entry in source.entries().items():
        plain = re.sub(r"\.default(?=\.|$)", "", name.removeprefix("base_model.model."))
        match = _NAME.fullmatch(plain)
        if match is None:
            raise CheckpointError(
                f"{entry.file}: tensor {name!r} is no part of a LoRA adapter.", "Merge it with its trainer."
            )
        if DTYPES.get(entry.dtype) not in _FLOATS:
            raise CheckpointError(
                f"{entry.file}: tensor {name!r} has dtype {entry.dtype}.", "An adapter holds floats."
            )
        parts = tensors.setdefault(match["module"], {})
        part = _PARTS[match["part"]]
        if part in parts:
            raise CheckpointError(
                f"{entry.file}: {name!r} and {parts[part]!r} are the same tensor of {match['module']}.",
                "Keep one of them.",
            )
        parts[part] = name
    if not tensors:
        raise CheckpointError(
            f"The adapter {folder} holds no tensors.", "Save it again where it was trained."
        )
    return Adapter(folder, config, tensors, source)


def _weights(folder: Path) -> TensorSource:
    if (folder / "adapter_model.safetensors").exists():
        return SafetensorsFile(folder / "adapter_model.safetensors")
    if (folder / "adapter_model.bin").exists():
        return TorchFile(folder / "adapter_model.bin")
    raise CheckpointError(
        f"{folder} has an {FILE}, but no adapter_model.safetensors and no adapter_model.bin.",
        "Copy the whole folder that peft's save_pretrained wrote.",
    )
