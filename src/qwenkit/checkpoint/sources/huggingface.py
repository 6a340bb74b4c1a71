"""Models from the Hugging Face hub, into the cache that all its tools share.

The library resolves names and builds the snapshot folder; large files are brought by transfer.py into
the place where the library looks for them (blobs/<sha256>), so they can be continued after a stop.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from glob import escape
from pathlib import Path
from urllib.parse import quote

from qwenkit.checkpoint.progress import Progress, say
from qwenkit.checkpoint.sources.repository import HubName, RepositoryFile, choose_files
from qwenkit.checkpoint.sources.snapshot import Snapshot, inspect, matches, result
from qwenkit.checkpoint.sources.transfer import (
    CorruptError,
    RemoteFile,
    SourceError,
    StatusError,
    fetch,
    partial_size,
    unreachable,
)
from qwenkit.checkpoint.store import disk_errors, require_space
from qwenkit.core import DownloadError

# Several files at once fill a line that one connection does not; more would only split it.
_CONNECTIONS = 4
_CLIENTS = {"httpx", "httpx2", "httpcore", "requests", "urllib3"}


def endpoint() -> str:
    """Address of the hub: HF_ENDPOINT, read now and not when the library was imported."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def cache_folder() -> Path:
    """The hub cache: HF_HUB_CACHE, else as the library decides."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE).expanduser()


def pull(wanted: HubName, folder: Path | None, token: str | None) -> Path:
    """Fetch what is missing of `wanted` and return its folder (or the GGUF file it picks).

    Raises:
        SourceError: the hub does not answer or does not give this model.
        DownloadError: the repository holds nothing usable, or the disk is full.
    """
    hub = endpoint()
    why = unreachable(hub)
    if why is not None:
        raise SourceError(
            f"{hub} did not answer ({why}).", "Set HF_ENDPOINT to a mirror, or check the network."
        )
    commit, files = _list(hub, wanted, token)
    chosen = choose_files(files, wanted.file, wanted.repo)
    place = cache_folder() / _repo_folder(wanted.repo) if folder is None else folder
    places = {f: place / "blobs" / f.sha256 if folder is None else place / f.path for f in chosen if f.sha256}
    _fetch_large(hub, wanted.repo, commit, places, place, token)
    snapshot = _snapshot(hub, wanted, commit, chosen, folder, token)
    _check(snapshot, chosen, hub)
    return result(snapshot, chosen, wanted.file is not None)


def cached(wanted: HubName, folder: Path | None) -> Snapshot | None:
    """What of `wanted` is on the disk, or None if nothing is. Never touches the network."""
    if folder is None:
        store = cache_folder() / _repo_folder(wanted.repo)
        revision = wanted.revision or "main"
        ref = store / "refs" / revision
        commit = ref.read_text().strip() if ref.is_file() else revision
        folder = store / "snapshots" / commit
    return inspect(folder, wanted.file) if folder.is_dir() else None


def _list(hub: str, wanted: HubName, token: str | None) -> tuple[str, list[RepositoryFile]]:
    """The commit that the revision means now, and its files with sizes and hashes."""
    from huggingface_hub import HfApi

    with _hub_errors(hub, wanted):
        api = HfApi(endpoint=hub, token=token, library_name="qwenkit")
        info = api.model_info(wanted.repo, revision=wanted.revision, files_metadata=True, timeout=20)
    if info.sha is None or info.siblings is None:
        raise SourceError(
            f"{hub} describes {wanted.repo} without commit or files.", "Set HF_ENDPOINT to another hub."
        )
    files = [
        RepositoryFile(s.rfilename, s.size, s.lfs.sha256 if s.lfs is not None else None, s.blob_id)
        for s in info.siblings
    ]
    return info.sha, files


def _fetch_large(
    hub: str, repo: str, commit: str, places: dict[RepositoryFile, Path], root: Path, token: str | None
) -> None:
    """Bring every file (all with SHA-256) to its place, several at a time."""
    from huggingface_hub import constants, get_token

    for file, path in places.items():
        _drop_if_wrong(path, file)
    lacking = [file for file, path in places.items() if not path.exists()]
    if not lacking:
        return
    total = sum(f.size or 0 for f in lacking)
    begun = sum(partial_size(places[f], f.sha256 or "") for f in lacking)
    require_space(root, total - begun, f"{repo} (HF_HUB_CACHE decides where it goes)")
    login = token or (None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token())
    headers = {"Authorization": f"Bearer {login}"} if login else {}
    cancelled = threading.Event()
    title = f"{repo} from {hub}: {len(lacking)} large file{'s' if len(lacking) > 1 else ''}"
    with Progress(title, total) as progress, ThreadPoolExecutor(_CONNECTIONS) as pool:
        jobs = {}
        for file in lacking:
            url = f"{hub}/{repo}/resolve/{commit}/{quote(file.path)}"
            remote = RemoteFile(url, file.path, file.size, file.sha256, headers)
            job = pool.submit(fetch, remote, places[file], advance=progress.advance, cancelled=cancelled)
            jobs[job] = file
        try:
            for job in as_completed(jobs):
                try:
                    job.result()
                except StatusError as error:
                    raise _refused(error.status, hub, repo, jobs[job].path) from error
        except BaseException:
            # One failure or Ctrl-C ends all transfers at their next chunk; what has arrived is kept.
            cancelled.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _drop_if_wrong(path: Path, file: RepositoryFile) -> None:
    """The library trusts whatever lies at its places, so what does not match must go before it looks."""
    if path.exists() and not matches(path, file):
        say(f"{file.path} on the disk does not match the hub's hash; deleted and fetched anew: {path}")
        path.resolve().unlink()
        path.unlink(missing_ok=True)


def _snapshot(
    hub: str,
    wanted: HubName,
    commit: str,
    chosen: Sequence[RepositoryFile],
    folder: Path | None,
    token: str | None,
) -> Path:
    """The folder of this commit with all chosen files; the library fetches the small ones."""
    from huggingface_hub import snapshot_download

    store = cache_folder() / _repo_folder(wanted.repo)
    ready = folder if folder is not None else store / "snapshots" / commit
    ref = store / "refs" / (wanted.revision or "main")
    known = (
        folder is not None
        or wanted.revision == commit
        or (ref.is_file() and ref.read_text().strip() == commit)
    )
    if known and all(matches(ready / f.path, f) for f in chosen):
        return ready  # nothing to ask the hub for
    for file in chosen:
        _drop_if_wrong(ready / file.path, file)
    small = [f for f in chosen if folder is None or f.sha256 is None]
    with _hub_errors(hub, wanted), disk_errors(ready, "building the snapshot"):
        made = snapshot_download(
            wanted.repo,
            # A local folder must be of the commit just listed; the cache also needs the name for offline use.
            revision=commit if folder is not None else wanted.revision,
            local_dir=folder,
            cache_dir=cache_folder(),
            allow_patterns=[escape(f.path) for f in small],
            endpoint=hub,
            token=token,
            library_name="qwenkit",
            etag_timeout=20,
        )
    if folder is None and Path(made).name != commit:
        raise SourceError(
            f"{wanted.repo} changed on {hub} while it was fetched "
            f"(commit {commit[:12]} to {Path(made).name[:12]}).",
            "Run the same command again.",
        )
    return Path(made)


def _check(snapshot: Path, chosen: Sequence[RepositoryFile], hub: str) -> None:
    """Raises CorruptError after deleting what does not match the hub's hashes."""
    bad = [f for f in chosen if not matches(snapshot / f.path, f)]
    for file in bad:
        path = snapshot / file.path
        if path.exists():
            path.resolve().unlink()
        path.unlink(missing_ok=True)
    if bad:
        raise CorruptError(
            f"{', '.join(f.path for f in bad)} from {hub} do not match the hub's own hash; deleted.",
            "Run the same command again; if it repeats, a proxy or mirror on the way alters the files.",
        )


@contextlib.contextmanager
def _hub_errors(hub: str, wanted: HubName) -> Iterator[None]:
    """Say in the user's terms what the library reports."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise _refused(403, hub, wanted.repo, "") from error
    except RepositoryNotFoundError as error:
        raise _refused(404, hub, wanted.repo, "") from error
    except RevisionNotFoundError as error:
        raise SourceError(
            f"{wanted.repo} on {hub} has no revision {wanted.revision!r}.",
            f"Give a branch, tag or commit listed at {hub}/{wanted.repo}/commits.",
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        raise _refused(status, hub, wanted.repo, "") from error
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"{hub} stopped answering for {wanted.repo}.", "Run the same command again."
        ) from error
    except Exception as error:  # the library changed its HTTP client twice: told by module
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise SourceError(
            f"{hub} broke off while asked for {wanted.repo}: {error or type(error).__name__}.",
            "Run the same command again.",
        ) from error


def _refused(status: int, hub: str, repo: str, path: str) -> DownloadError:
    if status in (401, 404) and not path:
        return StatusError(
            status,
            f"{hub} has no model {repo}, or it is private and this login may not see it (HTTP {status}).",
            "Check the spelling; for a private model run `hf auth login` or set HF_TOKEN.",
        )
    if status in (401, 403):
        return StatusError(
            status,
            f"{repo} is gated: {hub} gives it only to those who accepted its terms (HTTP {status}).",
            f"Accept them at {hub}/{repo}, then run `hf auth login` or set HF_TOKEN.",
        )
    return StatusError(
        status,
        f"{hub} answered HTTP {status} for {repo}{'/' if path else ''}{path}.",
        "Run the same command later.",
    )


def _repo_folder(repo: str) -> str:
    return f"models--{repo.replace('/', '--')}"
