"""One file over HTTP: continued where it stopped, hashed while it arrives, in place only when whole.

Knows URLs and hashes; does not know hubs. The hub libraries are not used for the large files because
their current versions discard a partial file when the process ends; a 2 GB shard would begin anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from qwenkit.checkpoint.progress import say
from qwenkit.checkpoint.stamps import stamp
from qwenkit.checkpoint.store import disk_errors, exclusive
from qwenkit.core import DownloadError

# Seconds. A hub that does not answer must not hold up a person; a running transfer may stall longer.
REACH_SECONDS = 4.0
READ_SECONDS = 20.0
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)

_CHUNK = 1 << 20
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class SourceError(DownloadError):
    """This source cannot deliver; another one may."""


class StatusError(SourceError):
    """The server answered with an HTTP status that repeating will not change."""

    def __init__(self, status: int, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.status = status


class CorruptError(SourceError):
    """What arrived is not what the hash promises; it has been deleted."""


class _Interrupted(Exception):  # noqa: N818 - never leaves this module
    """The transfer broke off in a way that continuing may cure."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be asked for: where, under which name people know it, bytes and SHA-256 (hex)."""

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def unreachable(url: str) -> str | None:
    """Why the server of `url` does not answer within REACH_SECONDS, or None if it does.

    Any HTTP status counts as an answer. Name look-up has no time-out of its own, hence the thread.
    """
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            with open_url(url, method="HEAD", seconds=REACH_SECONDS):
                outcome.append(None)
        except urllib.error.HTTPError as error:
            error.close()
            outcome.append(None)
        except (OSError, http.client.HTTPException) as error:
            outcome.append(_reason(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return outcome[0] if outcome else f"no answer within {REACH_SECONDS:.0f} s"


def fetch(
    remote: RemoteFile,
    destination: Path,
    *,
    advance: Callable[[int], None] = lambda count: None,
    cancelled: threading.Event | None = None,
) -> None:
    """Bring `remote` to `destination`, continuing a partial file of an earlier run.

    The partial file lies beside the destination and is kept on every interruption, Ctrl-C included.
    The hash is checked over all bytes before the rename, and stamped so that it need not be repeated.

    Args:
        advance: told every step in bytes, those already on the disk included; negative on a new beginning.
        cancelled: when set, the transfer stops at the next chunk with a KeyboardInterrupt.

    Raises:
        StatusError, CorruptError, SourceError: the source cannot deliver.
        DownloadError: the disk is full or closed.
    """
    partial = _partial(destination, remote.sha256 or hashlib.sha256(remote.url.encode()).hexdigest())
    with exclusive(str(destination)), disk_errors(destination, "fetching"):
        if destination.exists():
            return
        destination.parent.mkdir(parents=True, exist_ok=True)
        continued = partial.exists() and partial.stat().st_size > 0
        found = _fill(remote, partial, advance, cancelled)
        if remote.sha256 is not None and found != remote.sha256 and continued:
            # The earlier half may be of another version of the file: that is no fault of the source.
            say(f"The partial file of {remote.name} does not fit; it is deleted and fetched anew.")
            advance(-partial.stat().st_size)
            partial.unlink()
            found = _fill(remote, partial, advance, cancelled)
        if remote.sha256 is not None and found != remote.sha256:
            partial.unlink()
            raise CorruptError(
                f"{remote.name} from {_host(remote.url)} has SHA-256 {found[:16]}..., "
                f"not {remote.sha256[:16]}...; it was deleted.",
                "Run the same command again; if it repeats, the source or a proxy alters the file.",
            )
        os.replace(partial, destination)
        stamp(destination, found)


def partial_size(destination: Path, sha256: str) -> int:
    """Bytes of the file with this hash that an earlier, interrupted `fetch` left."""
    partial = _partial(destination, sha256)
    return partial.stat().st_size if partial.exists() else 0


def open_url(
    url: str, *, headers: Mapping[str, str] | None = None, method: str = "GET", seconds: float = READ_SECONDS
) -> Any:
    """An HTTP response, proxies of the environment respected; credentials never follow to another host.

    Raises:
        DownloadError: the URL is not HTTP.
        urllib.error.HTTPError, OSError: as urllib reports them.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"{url!r} is not an HTTP address.", "Give a hub address beginning with https://.")
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "qwenkit"})
    for name, value in (headers or {}).items():
        if name.lower() in ("authorization", "cookie"):
            request.add_unredirected_header(name, value)
        else:
            request.add_header(name, value)
    return urllib.request.build_opener(_Redirects).open(request, timeout=seconds)


def _partial(destination: Path, mark: str) -> Path:
    return destination.with_name(f".{destination.name[:80]}.{mark[:16]}.part")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows 308 also on Python 3.10, and keeps credentials only within one host."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        following = super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)
        if following is not None:
            following.method = req.get_method()
            if urllib.parse.urlsplit(newurl)[:2] == urllib.parse.urlsplit(req.full_url)[:2]:
                following.unredirected_hdrs.update(
                    {k: v for k, v in req.unredirected_hdrs.items() if k in ("Authorization", "Cookie")}
                )
        return following


def _fill(
    remote: RemoteFile, partial: Path, advance: Callable[[int], None], cancelled: threading.Event | None
) -> str:
    """Complete `partial`, trying again while there is hope; returns the SHA-256 of all of it."""
    failures = 0
    told = 0
    while True:
        have = partial.stat().st_size if partial.exists() else 0
        if remote.size is not None and have > remote.size:
            partial.unlink()
            have = 0
        advance(have - told)
        told = have
        try:
            return _continue(remote, partial, advance, cancelled)
        except _Interrupted as error:
            reached = partial.stat().st_size if partial.exists() else 0
            told = reached
            failures = 1 if reached > have else failures + 1
            if failures > len(RETRY_DELAYS):
                raise SourceError(
                    f"{_host(remote.url)} broke off {len(RETRY_DELAYS) + 1} times without a byte: {error}.",
                    "What has arrived is kept; run the same command again to continue.",
                ) from error
            if cancelled is not None and cancelled.wait(RETRY_DELAYS[failures - 1]):
                raise KeyboardInterrupt from None
            if cancelled is None:
                time.sleep(RETRY_DELAYS[failures - 1])


def _continue(
    remote: RemoteFile, partial: Path, advance: Callable[[int], None], cancelled: threading.Event | None
) -> str:
    digest = hashlib.sha256()
    with partial.open("a+b") as out:
        out.seek(0)
        while chunk := out.read(_CHUNK):
            digest.update(chunk)
        have = out.tell()
        if remote.size is not None and have == remote.size:
            return digest.hexdigest()
        with _ask(remote, have) as response:
            if have and response.status != 206:  # the server does not continue: begin anew
                out.truncate(0)
                advance(-have)
                have, digest = 0, hashlib.sha256()
            total = remote.size
            if total is None and response.headers.get("Content-Length"):
                total = have + int(response.headers["Content-Length"])
            while chunk := _read(response):
                if cancelled is not None and cancelled.is_set():
                    raise KeyboardInterrupt
                if total is not None and have + len(chunk) > total:
                    raise CorruptError(
                        f"{_host(remote.url)} sends more than the {total} bytes of {remote.name}."
                    )
                out.write(chunk)
                digest.update(chunk)
                have += len(chunk)
                advance(len(chunk))
        out.flush()
        os.fsync(out.fileno())
    if total is not None and have < total:
        raise _Interrupted(f"{total - have} of {total} bytes missing")
    return digest.hexdigest()


def _ask(remote: RemoteFile, have: int) -> Any:
    headers = dict(remote.headers)
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        return open_url(remote.url, headers=headers)
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            if error.code in _TRANSIENT:
                raise _Interrupted(f"HTTP {error.code}") from error
            raise StatusError(
                error.code, f"{_host(remote.url)} answered HTTP {error.code} for {remote.url}."
            ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_reason(error)) from error


def _read(response: Any) -> bytes:
    try:
        chunk: bytes = response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(_reason(error)) from error
    return chunk


def _reason(error: BaseException) -> str:
    cause = getattr(error, "reason", error)
    return str(cause) or type(error).__name__


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc
