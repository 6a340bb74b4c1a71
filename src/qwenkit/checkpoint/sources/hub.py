"""`pull`: a model from a hub, whole, hash-checked and resumable.

Chooses the hub and says which one did not answer and why; each hub's own ways are in huggingface.py
and modelscope.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, cast, get_args

from qwenkit.checkpoint.progress import say
from qwenkit.checkpoint.sources import huggingface, modelscope
from qwenkit.checkpoint.sources.repository import HubName
from qwenkit.checkpoint.sources.transfer import SourceError
from qwenkit.core import DownloadError, RequestError

Source = Literal["auto", "huggingface", "modelscope"]


def pull(
    name: str,
    *,
    source: Source = "auto",
    revision: str | None = None,
    local_dir: str | Path | None = None,
    offline: bool = False,
    token: str | None = None,
) -> Path:
    """Folder of the model `name` (or the GGUF file, where `name` picks one), fetched if it is not there yet.

    Only weights, configuration, tokenizer and licence are fetched, never code. Every file is compared
    with the hash the hub publishes: SHA-256 for large files, the git blob id for small ones.

    Args:
        name: `org/name`, `org/name@revision`, `org/name:q4_k_m` (one of several GGUF files).
        source: the hub; "auto" asks Hugging Face (HF_ENDPOINT) and then ModelScope (MODELSCOPE_ENDPOINT).
        revision: branch, tag or commit; the hub's default branch if None.
        local_dir: put plain files here instead of the hub's own cache.
        offline: use only what is on the disk; HF_HUB_OFFLINE=1 does the same.
        token: for private or gated models; else the login of the hub's own command is used.

    Raises:
        DownloadError: no hub delivers, the disk is full, or offline and something is missing.
        RequestError: contradictory or unknown arguments.
    """
    check_source(source)
    wanted = HubName.parse(name)
    if revision is not None and wanted.revision is not None and revision != wanted.revision:
        raise RequestError(
            f"{name!r} names revision {wanted.revision!r}, but revision={revision!r} is given as well.",
            "Give one.",
        )
    wanted = HubName(wanted.repo, revision or wanted.revision, wanted.file)
    folder = None if local_dir is None else Path(local_dir).expanduser()
    if offline or told_offline():
        return _from_disk(wanted, source, folder)
    if source == "huggingface":
        return huggingface.pull(wanted, folder, token)
    if source == "modelscope":
        return modelscope.pull(wanted, folder, token)
    return _from_any(wanted, folder, token)


def check_source(source: str) -> Source:
    """The source, if it is one. Raises RequestError naming the choices."""
    for known in get_args(Source):
        if source == known:
            return cast(Source, known)
    raise RequestError(f"source={source!r} is unknown.", f"Choose one of {', '.join(get_args(Source))}.")


def _from_any(wanted: HubName, folder: Path | None, token: str | None) -> Path:
    reasons: list[str] = []
    try:
        return huggingface.pull(wanted, folder, token)
    except SourceError as error:
        reasons.append(f"Hugging Face: {error}")
        first = error
    absent = modelscope.absent()
    if absent is None:
        say(f"{first.problem} Trying ModelScope.")
        try:
            return modelscope.pull(wanted, folder, token)
        except SourceError as error:
            reasons.append(f"ModelScope: {error}")
    else:
        say(f"ModelScope is skipped: {absent}")
        reasons.append(f"ModelScope: skipped, {absent}")
    whole = huggingface.cached(wanted, folder)
    if whole is not None and not whole.missing:
        say(f"{first.problem} Using the copy on the disk, {whole.path}.")
        return whole.path
    raise DownloadError(
        f"No hub delivered {wanted.repo}. " + " ".join(reasons),
        "Give the path of a folder that is on this machine, or run again when a hub is reachable.",
    ) from first


def _from_disk(wanted: HubName, source: Source, folder: Path | None) -> Path:
    found = []
    if source != "modelscope":
        found.append(huggingface.cached(wanted, folder))
    if source != "huggingface" and folder is None:
        found.append(modelscope.cached(wanted))
    copies = [copy for copy in found if copy is not None]
    for copy in copies:
        if not copy.missing:
            return copy.path
    where = "; ".join(f"{copy.path} lacks {', '.join(copy.missing)}" for copy in copies)
    raise DownloadError(
        f"{wanted.repo} is not complete on this machine ({where or 'nothing of it is in the hub caches'}) "
        "and offline operation is asked for.",
        f"Run `qwenkit pull {wanted.repo}` once with a connection, or give a path.",
    )


def told_offline() -> bool:
    """Whether the environment forbids the network (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
