"""Open a checkpoint, whatever its layout."""

from __future__ import annotations

import re
from pathlib import Path

from qwenkit.checkpoint.checkpoint_base import Checkpoint
from qwenkit.checkpoint.folder_checkpoint import FolderCheckpoint
from qwenkit.checkpoint.gguf_checkpoint import GGUFCheckpoint
from qwenkit.core import CheckpointError


def open_checkpoint(path: Path, *, content_hash: str | None = None) -> Checkpoint:
    """Open a checkpoint folder or a .gguf file, reading headers and configuration only.

    content_hash: SHA-256 of a .gguf file whose content is known; its dequantized tensors are then kept in
    the cache, and later starts map them. Raises CheckpointError, ConfigError or UnsupportedError naming the
    file, what is wrong with it and what to do.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"There is no checkpoint at {path}.", "Give a folder with config.json, or a .gguf file."
        )
    if path.is_file():
        return GGUFCheckpoint(path, content_hash)
    if (path / "config.json").exists():
        return FolderCheckpoint(path)
    files = sorted(path.glob("*.gguf"))
    first = [
        file
        for file in files
        if not re.search(r"-\d{5}-of-\d{5}\.gguf$", file.name) or "-00001-of-" in file.name
    ]
    if len(first) == 1:
        return GGUFCheckpoint(first[0], content_hash)
    if files:
        raise CheckpointError(
            f"{path} holds {len(files)} .gguf files: {', '.join(file.name for file in files[:8])}.",
            "Give the path of one of them.",
        )
    if (path / "adapter_config.json").exists():
        raise CheckpointError(
            f"{path} is a LoRA adapter, not a model.",
            f"Merge it into its base first: qwenkit merge BASE {path} --out DIR.",
        )
    raise CheckpointError(
        f"{path} is not a checkpoint: it has no config.json.",
        "Give a folder with config.json and weights, or a .gguf file.",
    )
