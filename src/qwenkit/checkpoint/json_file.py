"""JSON files of a checkpoint folder: config.json and its siblings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwenkit.checkpoint.verify import check_file
from qwenkit.core import CheckpointError

_LARGEST = 256 * 2**20  # bytes; the largest real one, tokenizer.json, is 11 MB


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file. Raises CheckpointError if it is missing, a git-lfs pointer or not an object."""
    if check_file(path) > _LARGEST:
        raise CheckpointError(
            f"{path} is larger than {_LARGEST} bytes.", "It is not the file it is named after."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.", "Download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a JSON {type(value).__name__}, not an object.", "Download it again."
        )
    return value


def read_json_if_any(path: Path) -> dict[str, Any] | None:
    """As `read_json`, or None where there is no such file."""
    return read_json(path) if path.exists() or path.is_symlink() else None
