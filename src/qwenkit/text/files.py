"""Reading and writing small whole files, with errors a person can act on.

Knows the ways a downloaded file goes wrong; knows nothing about what is inside.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from qwenkit.core import TokenizerError

_LFS_POINTER = b"version https://git-lfs"
_AGAIN = "Download the file again from where the checkpoint came from."


def read_whole(path: Path) -> bytes:
    """The bytes of `path`; TokenizerError if it is missing, empty or only a git-lfs pointer."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"Cannot read {path}: {error.strerror}.", "Check the path and its permissions."
        ) from error
    if not data:
        raise TokenizerError(f"{path} is empty.", _AGAIN)
    if data.startswith(_LFS_POINTER):
        raise TokenizerError(
            f"{path} is a git-lfs pointer, not the file itself.",
            "Run `git lfs pull` in the folder, or download the checkpoint with `qwenkit pull`.",
        )
    return data


def read_text(path: Path) -> str:
    """The UTF-8 text of `path`; TokenizerError naming the line of the first byte that is not UTF-8."""
    data = read_whole(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TokenizerError(f"{path}:{line}: byte {data[error.start]:#04x} is not UTF-8.", _AGAIN) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; TokenizerError naming the line where it is damaged or cut off."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path}:{error.lineno}: not valid JSON ({error.msg}).", _AGAIN) from error
    except RecursionError as error:
        raise TokenizerError(f"{path}: JSON nested too deeply to be a tokenizer file.", _AGAIN) from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: holds a JSON {type(value).__name__}, not an object.", _AGAIN)
    return value


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, so that a crash leaves the old file or the new, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        mask = os.umask(0)  # mkstemp makes the file private; the umask can only be read by setting it
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
