"""The cache folder: where it is, who may write it now, and things computed once from a file.

Knows folders, locks and atomic replacement; does not know what is kept in them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from qwenkit.checkpoint.progress import gigabytes, say
from qwenkit.core import CheckpointError, DownloadError

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}
_ELSEWHERE = "set QWENKIT_CACHE to a folder on another disk"


def cache_root() -> Path:
    """$QWENKIT_CACHE, else $XDG_CACHE_HOME/qwenkit, else ~/.cache/qwenkit. Not created here."""
    chosen = os.environ.get("QWENKIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "qwenkit"


def cache_limit() -> int:
    """Bytes that computed entries may take: $QWENKIT_CACHE_LIMIT in GB, else 40 GB.

    Raises:
        CheckpointError: the variable is no number, or negative.
    """
    chosen = os.environ.get("QWENKIT_CACHE_LIMIT", "40")
    try:
        limit = float(chosen)
    except ValueError:
        limit = -1.0
    if not 0 <= limit < 1e9:
        raise CheckpointError(
            f"QWENKIT_CACHE_LIMIT={chosen!r}.", "Give a number of gigabytes, as 40; 0 keeps none."
        )
    return int(limit * 1e9)


@contextlib.contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn a full or closed disk into an error with a remedy; every other OSError passes unchanged.

    Raises:
        DownloadError: the disk is full, read-only or not ours; `path` and the free space are named.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DownloadError(
                f"No room while {doing} {path}: {error.strerror} ({_free(path)} free).",
                f"Free space there, or {_ELSEWHERE}; what is complete is kept.",
            ) from error
        if error.errno in _CLOSED and _concerns(error, path):
            raise DownloadError(
                f"Cannot write while {doing} {path}: {error.strerror}.",
                f"Make {path.parent} writable for this user, or {_ELSEWHERE}.",
            ) from error
        raise


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse before starting when `needed` bytes do not fit beside `folder`.

    Raises:
        DownloadError: with both numbers.
    """
    free = shutil.disk_usage(_existing(folder)).free
    if needed > free:
        raise DownloadError(
            f"{what} needs {gigabytes(needed)} in {folder}, but only {gigabytes(free)} are free.",
            f"Free {gigabytes(needed - free)} there, or {_ELSEWHERE}.",
        )


@contextlib.contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the lock called `name` among all processes that share the cache folder.

    The kernel drops the lock when its holder dies, so a killed process never blocks the next one.

    Raises:
        DownloadError: the lock file cannot be created.
    """
    path = cache_root() / "locks" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.lock"
    lock = FileLock(path)
    with disk_errors(path, "creating the lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            say(f"Another process is working on {name}; waiting for it.")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


class StoreError(CheckpointError):
    """The cache cannot take an entry: its disk is full, closed or read-only."""


class DerivedStore:
    """Files or folders computed from other files, kept under a key that names their content.

    The caller puts everything the result depends on into the key (hash of the source, what is
    computed, version of the computation), so an entry never goes stale and is never overwritten.
    Together the entries take `limit` bytes at most (or one entry, if that alone is larger): what was
    not used for longest is deleted when a new entry needs the room.
    """

    def __init__(self, root: Path | None = None) -> None:
        """`root` defaults to the folder `derived` of the cache. Raises CheckpointError as `cache_limit`."""
        self.root = cache_root() / "derived" if root is None else root
        self.limit = cache_limit()

    def get_or_make(self, key: str, make: Callable[[Path], None], *, durable: bool = True) -> Path:
        """Path of the entry `key`; if absent, `make(path)` computes it into a file or folder at `path`.

        Of several processes asking at once one computes and the others wait. An entry appears whole
        or not at all: it is written beside its place, synced and renamed. What a killed process left
        behind is removed by the next one that makes the same key. durable: wait for the disk; an entry
        that detects its own damage need not.

        Raises:
            StoreError: the disk is full or closed.
            CheckpointError: `key` is not a plain name, or `make` wrote nothing.
        """
        if not _KEY.fullmatch(key):
            raise CheckpointError(
                f"{key!r} cannot be a key of the cache.",
                "Use 1 to 200 of A-Z a-z 0-9 . _ + -, not beginning with a sign.",
            )
        place = self.root / key
        if place.exists():
            _mark_used(place)
            return place
        try:
            with exclusive(str(place)), disk_errors(place, "keeping"):
                if not place.exists():
                    self._make(place, make, durable)
        except DownloadError as error:
            raise StoreError(error.problem, error.remedy) from error
        self.trim(keep=place)
        return place

    def discard(self, key: str) -> None:
        """Delete the entry `key`, if it is there; a process that has it open is not disturbed."""
        remove(self.root / key)

    def trim(self, keep: Path | None = None) -> None:
        """Delete the entries that were not used for longest until all take `limit` bytes, `keep` excepted."""
        entries = []
        for place in self.root.iterdir() if self.root.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # another process is trimming too
                if not place.name.startswith("."):  # one being written
                    entries.append((place.stat().st_mtime_ns, _size(place), place))
        total = sum(size for _, size, _ in entries)
        for _, size, place in sorted(entries):
            if total <= self.limit:
                return
            if place != keep:
                with contextlib.suppress(FileNotFoundError):
                    remove(place)
                total -= size

    def _make(self, place: Path, make: Callable[[Path], None], durable: bool) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        # Holding the lock, nobody else can be writing this key: any temporary is left from a dead process.
        for stale in self.root.glob(f".{place.name}.*.tmp"):
            remove(stale)
        fresh = self.root / f".{place.name}.{secrets.token_hex(4)}.tmp"
        try:
            make(fresh)
            if not fresh.exists():
                raise CheckpointError(
                    f"Nothing was computed for {place.name}: {fresh} does not exist.",
                    "The function given to get_or_make must write to the path it receives.",
                )
            if durable:
                sync(fresh)
            os.replace(fresh, place)
            if durable:
                sync_folder(self.root)
        finally:
            remove(fresh)


def _mark_used(place: Path) -> None:
    """The time of the last use is the time of modification; nobody changes an entry."""
    with contextlib.suppress(OSError):  # a read-only cache serves as well
        os.utime(place)


def _size(place: Path) -> int:
    if place.is_dir():
        return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    return place.stat().st_size


def remove(path: Path) -> None:
    """Delete a file or a whole folder; absent is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file, or everything in a folder, to the disk."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _concerns(error: OSError, path: Path) -> bool:
    """Whether the error is about writing `path`: its folder, a folder above it or a file beside it."""
    if error.filename is None:
        return True
    named = Path(os.fsdecode(error.filename)).absolute()
    path = path.absolute()
    return named in path.parents or path.parent in named.parents


def _existing(folder: Path) -> Path:
    """The nearest ancestor that exists: the disk that `folder` will be on."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def _free(path: Path) -> str:
    return gigabytes(shutil.disk_usage(_existing(path)).free)
