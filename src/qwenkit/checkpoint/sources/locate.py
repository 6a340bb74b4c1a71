"""From what a person writes after --model to a path on this machine.

Knows names, paths and the demo models; does not open a checkpoint.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from qwenkit.checkpoint.sources.demo import DEMOS, demo_file, notice
from qwenkit.checkpoint.sources.hub import pull, told_offline
from qwenkit.checkpoint.sources.repository import HubName
from qwenkit.core import CheckpointError, DownloadError

_ACCEPTED = (
    f"Give {', '.join(DEMOS)}, the path of a model folder or .gguf file, or a hub name such as "
    "Qwen/Qwen2.5-0.5B-Instruct (also org/name@revision, org/name:q4_k_m)."
)


@dataclass(frozen=True)
class Located:
    """A model on this machine.

    `path` is a folder or a .gguf file; `content_hash` its SHA-256 where it is known without reading it
    (the demo models); `notice` what the user must be told before the first answer.
    """

    path: Path
    display_name: str
    content_hash: str | None = None
    notice: str | None = None


def locate(name: str | Path | None, *, offline: bool = False) -> Located:
    """Find the model `name`, fetching it if need be.

    None means $QWENKIT_MODEL or else the demo model. "demo", "demo-0.5b" and "demo-1.5b" are reserved
    (a folder of that name is reached as ./demo); otherwise an existing path wins over a hub name.

    Raises:
        CheckpointError: the path does not exist, or the name is nothing qwenkit understands.
        DownloadError: a hub or demo model cannot be had.
    """
    if name is None:
        name = os.environ.get("QWENKIT_MODEL") or "demo"
    if isinstance(name, str) and name in DEMOS:
        demo = DEMOS[name]
        path = demo_file(demo, offline=offline or told_offline())
        return Located(path, demo.title, demo.sha256, notice(demo))
    text = os.fspath(name)
    path = Path(text).expanduser()
    if text and path.exists():
        model = _model_in(path)
        return Located(model, model.stem if model.suffix == ".gguf" else model.resolve().name)
    if isinstance(name, Path) or _looks_like_path(text):
        raise CheckpointError(f"There is no file or folder {path}.", _nearest(path))
    try:
        HubName.parse(text)
    except DownloadError as error:
        raise CheckpointError(
            f"{text!r} is neither a path that exists nor the name of a model.", _ACCEPTED
        ) from error
    try:
        found = pull(text, offline=offline)
    except DownloadError as error:
        raise DownloadError(
            error.problem, f"{error.remedy} No file or folder {text} exists here either."
        ) from error
    return Located(_model_in(found), text)


def _model_in(path: Path) -> Path:
    """A folder that is only a wrapper around one GGUF file stands for that file.

    Raises:
        CheckpointError: several GGUF files and no config.json.
    """
    if not path.is_dir() or (path / "config.json").exists():
        return path
    files = sorted(p for p in path.iterdir() if p.suffix == ".gguf")
    if len(files) > 1:
        raise CheckpointError(
            f"{path} holds {len(files)} GGUF files: {', '.join(p.name for p in files)}.",
            f"Name one of them, for instance {files[0]}.",
        )
    return files[0] if files else path


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~")) or text.endswith((".gguf", "/")) or text.count("/") > 1


def _nearest(path: Path) -> str:
    """What lies where the missing path should be, the most similar names first."""
    folder = path.absolute().parent
    missing = path.name
    while not folder.is_dir():
        missing, folder = folder.name, folder.parent
    try:
        names = sorted(p.name for p in folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be listed: {error.strerror}."
    close = difflib.get_close_matches(missing, names, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(str(folder / name) for name in close)}?"
    return f"{folder} holds {', '.join(names[:10]) or 'nothing'}{' ...' if len(names) > 10 else ''}."
