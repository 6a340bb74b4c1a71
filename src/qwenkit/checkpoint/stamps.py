"""Hashes of files, computed once and then trusted while size and modification time stay the same.

A stamp is a small note in the cache folder; losing it costs one more pass over the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from qwenkit.checkpoint.progress import say
from qwenkit.checkpoint.store import cache_root

_CHUNK = 4 << 20


def hash_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256 of the whole file as 64 hex digits; `advance` is told the bytes of every step."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()


def content_hash(path: Path) -> str:
    """SHA-256 of the file, read from its stamp if it has not changed since, else computed and stamped."""
    known = _read(path)
    if known is not None:
        return known
    found = hash_file(path)
    stamp(path, found)
    return found


def is_intact(path: Path, sha256: str, size: int | None) -> bool:
    """Whether `path` is a file of that size and hash. A wrong size is known without reading it."""
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        return False
    return content_hash(path) == sha256


def stamp(path: Path, sha256: str) -> None:
    """Remember that `path`, as it is now, has this hash."""
    note = _place(path)
    fresh = note.with_name(f".{note.name}.{secrets.token_hex(4)}.tmp")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps({**_identity(path), "sha256": sha256}))
        os.replace(fresh, note)
    except OSError as error:
        say(f"Cannot remember the hash of {path} in {note.parent} ({error.strerror}): computed every time.")


def _read(path: Path) -> str | None:
    try:
        note = json.loads(_place(path).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict):
        return None
    sha256 = note.pop("sha256", None)
    return sha256 if isinstance(sha256, str) and note == _identity(path) else None


def _identity(path: Path) -> dict[str, str | int]:
    facts = path.stat()
    return {"path": str(path.resolve()), "size": facts.st_size, "mtime_ns": facts.st_mtime_ns}


def _place(path: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    return cache_root() / "verified" / f"{name}.json"
