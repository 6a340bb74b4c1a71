"""A model folder as it lies on the disk: is it whole, and does every file match the hub's hash?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenkit.checkpoint.sources.repository import RepositoryFile, choose_gguf, missing_files
from qwenkit.checkpoint.stamps import is_intact
from qwenkit.core import DownloadError


@dataclass(frozen=True)
class Snapshot:
    """A folder (or the GGUF file in it that was asked for) and what it lacks, in words."""

    path: Path
    missing: list[str]


def inspect(folder: Path, wanted: str | None = None) -> Snapshot:
    """What `folder` lacks to be loaded. `wanted` is the GGUF file asked for, or the end of its name."""
    present = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    if wanted is not None:
        try:
            fitting = [f.path for f in choose_gguf([RepositoryFile(p) for p in present], wanted, folder.name)]
        except DownloadError as error:
            return Snapshot(folder, [f"a GGUF file {wanted!r} ({error.problem})"])
        return Snapshot(folder / fitting[0], missing_files(fitting))
    indexed: list[str] = []
    for index in folder.glob("*.index.json"):
        try:
            indexed += set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Snapshot(folder, [f"{index.name} (unreadable)"])
    return Snapshot(folder, missing_files(present, indexed))


def matches(path: Path, file: RepositoryFile) -> bool:
    """Whether the bytes at `path` are those the hub describes.

    Large files by SHA-256 (stamped, so an unchanged file is read once); small ones by git's blob id,
    the SHA-1 of a header and the content. A file for which the hub gives neither is compared by size.
    """
    if not path.is_file() or (file.size is not None and path.stat().st_size != file.size):
        return False
    if file.sha256 is not None:
        return is_intact(path, file.sha256, file.size)
    if file.blob_id is not None:
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return found.hexdigest() == file.blob_id
    return True


def result(folder: Path, chosen: Sequence[RepositoryFile], picked: bool) -> Path:
    """What `pull` returns: the folder, or the first part of the GGUF file that was picked by name."""
    if not picked:
        return folder
    return folder / next(f.path for f in chosen if f.path.lower().endswith(".gguf"))
