"""Files that a command writes its numbers to: refused before it measures, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qwenkit.core import RequestError


def check_place(path: Path | None) -> None:
    """Raise RequestError unless the file can be written, or none is wanted."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "it is a folder" if path.is_dir() else f"{folder} is no folder that can be written"
        raise RequestError(f"Cannot write {path}: {why}.", "Name another file.")


def write_json(path: Path, value: Any) -> None:
    """Replace the file in one step."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(fresh, path)
