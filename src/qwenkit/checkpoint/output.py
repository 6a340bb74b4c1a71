"""A file or folder that appears whole or not at all, whatever kills its writer.

It is written under a hidden name beside its place and renamed at the end. The writer holds a lock on the
hidden one, so a later run can tell what a dead process left from what a living one writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from qwenkit.checkpoint.store import disk_errors, remove, require_space, sync, sync_folder
from qwenkit.core import CheckpointError, DownloadError


@contextlib.contextmanager
def appearing(place: Path, *, folder: bool, nbytes: int = 0) -> Iterator[Path]:
    """Yields the path to write to: an empty folder or file that becomes `place` if all goes well.

    nbytes: what will be written, refused at once if the disk lacks it. What a killed process left of the
    same place is removed first. Raises CheckpointError if `place` exists and is more than an empty folder,
    for a full disk and for a folder that cannot be written.
    """
    place = place.absolute()
    check_free(place, folder=folder)
    try:
        with disk_errors(place, "writing"):
            place.parent.mkdir(parents=True, exist_ok=True)
            for stale in place.parent.glob(f".{place.name}.*.tmp"):
                _remove_if_dead(stale)
            require_space(place.parent, nbytes, place.name)
            fresh = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
            try:
                if folder:
                    fresh.mkdir()
                else:
                    fresh.touch(exist_ok=False)
                with _locked(fresh):
                    yield fresh
                    sync(fresh)
                    if folder:
                        sync_folder(fresh)
                    check_free(place, folder=folder)  # another writer may have been quicker
                    os.replace(fresh, place)
                sync_folder(place.parent)
            finally:
                remove(fresh)
    except DownloadError as error:  # the name these have for a full disk
        raise CheckpointError(error.problem, "Free space there, or write to another folder.") from error


def check_free(place: Path, *, folder: bool) -> None:
    """Raise CheckpointError unless `place` is free to be written: absent, or an empty folder for a folder."""
    if not os.path.lexists(place):
        return
    if not folder:
        raise CheckpointError(f"{place} exists.", "Choose a new name for the output, or delete it.")
    if not place.is_dir() or any(place.iterdir()):
        raise CheckpointError(
            f"{place} exists and is not an empty folder.", "Choose a new name for the output, or delete it."
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_if_dead(path: Path) -> None:
    """The kernel drops the lock with its holder: what nobody holds, nobody writes."""
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)
        except BlockingIOError:
            return
        finally:
            os.close(handle)
