"""Models from ModelScope, through its own library (an extra), hash-checked afterwards.

The library continues partial files itself. It does not hand out the hashes the hub publishes, so the
listing is read here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import urllib.error
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from qwenkit.checkpoint.sources.repository import HubName, RepositoryFile, choose_files
from qwenkit.checkpoint.sources.snapshot import Snapshot, inspect, matches, result
from qwenkit.checkpoint.sources.transfer import CorruptError, SourceError, StatusError, open_url, unreachable
from qwenkit.checkpoint.store import disk_errors, require_space
from qwenkit.core import DownloadError

_LIBRARY = {"modelscope", "modelscope_hub", "requests", "urllib3"}


def endpoint() -> str:
    """Address of the hub: MODELSCOPE_ENDPOINT."""
    return os.environ.get("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn").rstrip("/")


def absent() -> str | None:
    """Why the library cannot be used, with the command that changes it; None if it can."""
    if importlib.util.find_spec("modelscope") is None:
        return 'its library is not installed (pip install "qwenkit[modelscope]").'
    return None


def pull(wanted: HubName, folder: Path | None, token: str | None) -> Path:
    """Fetch what is missing of `wanted` and return its folder (or the GGUF file it picks).

    Raises:
        DownloadError: the library is not installed, the repository holds nothing usable, or the disk is full.
        SourceError: the hub does not answer or does not give this model.
    """
    lacking = absent()
    if lacking is not None:
        raise DownloadError(
            "ModelScope is asked for, but the package `modelscope` is not installed.",
            'Run `pip install "qwenkit[modelscope]"`.',
        )
    hub = endpoint()
    why = unreachable(hub)
    if why is not None:
        raise SourceError(f"{hub} did not answer ({why}).", "Set MODELSCOPE_ENDPOINT, or check the network.")
    chosen = choose_files(_list(hub, wanted, token), wanted.file, wanted.repo)
    from modelscope import snapshot_download

    kept = cached(wanted) if folder is None else None
    there = folder if folder is not None else (kept.path if kept is not None else None)
    ready = 0 if there is None else sum(f.size or 0 for f in chosen if (there / f.path).is_file())
    where = folder or Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope")
    require_space(
        where, sum(f.size or 0 for f in chosen) - ready, f"{wanted.repo} (MODELSCOPE_CACHE decides where)"
    )
    with _library_errors(hub, wanted), disk_errors(where, "fetching into"):
        options = {} if token is None else {"token": token}
        made = Path(
            snapshot_download(
                wanted.repo,
                revision=wanted.revision or "master",
                allow_patterns=[f.path for f in chosen],
                **({} if folder is None else {"local_dir": str(folder)}),
                **options,
            )
        )
    bad = [f for f in chosen if not matches(made / f.path, f)]
    for file in bad:
        (made / file.path).unlink(missing_ok=True)
    if bad:
        raise CorruptError(
            f"{', '.join(f.path for f in bad)} from {hub} do not match the hub's own hash; deleted.",
            "Run the same command again.",
        )
    return result(made, chosen, wanted.file is not None)


def cached(wanted: HubName) -> Snapshot | None:
    """What of `wanted` the library has on the disk, or None. Never touches the network."""
    if absent() is not None:
        return None
    from modelscope import snapshot_download

    try:
        folder = Path(
            snapshot_download(wanted.repo, revision=wanted.revision or "master", local_files_only=True)
        )
    except Exception as error:  # its versions raise different classes for "not cached"
        if type(error).__module__.partition(".")[0] not in _LIBRARY and not isinstance(
            error, (ValueError, OSError)
        ):
            raise
        return None
    return inspect(folder, wanted.file) if folder.is_dir() else None


def _list(hub: str, wanted: HubName, token: str | None) -> list[RepositoryFile]:
    query = urllib.parse.urlencode({"Revision": wanted.revision or "master", "Recursive": "True"})
    url = f"{hub}/api/v1/models/{wanted.repo}/repo/files?{query}"
    headers = {} if token is None else {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}
    try:
        with open_url(url, headers=headers) as response:
            answer = json.loads(response.read())
        entries = answer["Data"]["Files"]
        return [
            RepositoryFile(e["Path"], e.get("Size"), e.get("Sha256") or None)
            for e in entries
            if e.get("Type") != "tree"
        ]
    except urllib.error.HTTPError as error:
        error.close()
        raise StatusError(
            error.code,
            f"{hub} has no model {wanted.repo} at revision {wanted.revision or 'master'!r}, or it is private "
            f"(HTTP {error.code}).",
            "Check the spelling and the revision; for a private model give the token of your account.",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{hub} did not list {wanted.repo}: {error or type(error).__name__}.") from error


@contextlib.contextmanager
def _library_errors(hub: str, wanted: HubName) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library's classes differ by version: told by module
        if type(error).__module__.partition(".")[0] not in _LIBRARY:
            raise
        raise SourceError(
            f"{hub} did not deliver {wanted.repo}: {error or type(error).__name__}.",
            "Run the same command again; what has arrived is kept.",
        ) from error
