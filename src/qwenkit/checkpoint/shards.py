"""The weight files of a folder, found by their published names and read as one source of tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.checkpoint.json_file import read_json
from qwenkit.checkpoint.safetensors_file import SafetensorsFile
from qwenkit.checkpoint.tensor_source import TensorEntry, TensorSource
from qwenkit.checkpoint.torch_file import TorchFile
from qwenkit.core import CheckpointError
from qwenkit.quant import Codes

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)")


class Shards(TensorSource):
    """Several files as one. Raises CheckpointError if two of them hold a tensor of the same name."""

    def __init__(self, files: Sequence[TensorSource]) -> None:
        self._entries: dict[str, TensorEntry] = {}
        self._holder: dict[str, TensorSource] = {}
        for file in files:
            for name, entry in file.entries().items():
                if name in self._entries:
                    raise CheckpointError(
                        f"Tensor {name!r} is in {self._entries[name].file} and again in {entry.file}.",
                        "Remove the files that do not belong to this checkpoint.",
                    )
                self._entries[name] = entry
                self._holder[name] = file

    def entries(self) -> Mapping[str, TensorEntry]:
        return self._entries

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        self.entry(name)
        return self._holder[name].read(name, dtype)

    def read_codes(self, name: str) -> Codes | None:
        self.entry(name)
        return self._holder[name].read_codes(name)

    def release(self, name: str) -> None:
        self._holder[name].release(name)


def open_folder(folder: Path) -> TensorSource:
    """All weights of a folder: safetensors if there are any, else pytorch_model*.bin.

    Accepted: an index with its shards, one file, or a complete numbered set without its index.
    Raises CheckpointError when nothing is found, a shard is missing or the index contradicts the shards.
    """
    kinds: tuple[tuple[str, str, Callable[[Path], TensorSource]], ...] = (
        ("model.safetensors", "*.safetensors", SafetensorsFile),
        ("pytorch_model.bin", "pytorch_model*.bin", TorchFile),
    )
    for whole, pattern, reader in kinds:
        index = folder / f"{whole}.index.json"
        if index.exists():
            return _indexed(folder, index, reader)
        if (folder / whole).exists():
            return reader(folder / whole)
        files = sorted(p for p in folder.glob(pattern) if not p.name.startswith(("adapter_", ".")))
        if files:
            return Shards([reader(path) for path in _complete(folder, files)])
    if any(folder.glob("adapter_model*")):
        raise CheckpointError(
            f"{folder} holds a LoRA adapter, not a model.",
            f"Merge it into its base first: qwenkit merge BASE {folder} --out DIR.",
        )
    raise CheckpointError(
        f"{folder} has no weights (no *.safetensors, no pytorch_model*.bin).",
        "Download the whole checkpoint, for example with `qwenkit pull`.",
    )


def _complete(folder: Path, files: list[Path]) -> list[Path]:
    """One file, or every shard of one numbered set."""
    plain = [path for path in files if not _SHARD.fullmatch(path.name)]
    if plain:
        if len(files) > 1:
            raise CheckpointError(
                f"{folder} has {len(files)} weight files and no index: {', '.join(p.name for p in files)}.",
                "Keep only the files of one checkpoint, or add its *.index.json.",
            )
        return plain
    present = {path.name for path in files}
    match = _SHARD.fullmatch(files[0].name)
    total = int(match["total"]) if match else 0
    wanted = [
        f"{match['stem']}-{number:05d}-of-{total:05d}{match['suffix']}" for number in range(1, total + 1)
    ] if match and total <= 10_000 else []  # fmt: skip
    missing = [name for name in wanted if name not in present]
    if missing or len(files) != len(wanted):
        raise CheckpointError(
            f"{folder} has {len(files)} of {total} shards; missing: {', '.join(missing[:5]) or 'none'}.",
            "Download the missing files.",
        )
    return files


def _indexed(folder: Path, index: Path, reader: Callable[[Path], TensorSource]) -> TensorSource:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of names to files.", "Download it again.")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(
                f"{index} points outside its folder, to {name!r}.",
                "Do not use this checkpoint; it was tampered with.",
            )
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} shards: {', '.join(missing[:5])}.",
            "Download the missing files.",
        )
    files = {name: reader(folder / name) for name in names}
    for tensor, name in weight_map.items():
        if tensor not in files[name].entries():
            raise CheckpointError(
                f"{index} says that {name} holds {tensor!r}, but it does not.",
                "Index and shards are of different versions: download both again.",
            )
    return Shards(list(files.values()))
