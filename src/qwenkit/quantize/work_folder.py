"""What is finished of an unfinished quantization: a folder beside the output, one file a layer.

A file appears whole or not at all, so a run killed at any moment is continued by the same command. The kernel
drops the lock of a dead process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qwenkit.checkpoint.json_file import read_json
from qwenkit.checkpoint.safetensors_file import SafetensorsFile
from qwenkit.checkpoint.safetensors_writer import PlannedTensor, write_safetensors
from qwenkit.checkpoint.store import disk_errors, remove
from qwenkit.core import CheckpointError, DownloadError, RequestError

_COMMAND = "command.json"


class WorkFolder:
    """Made by `opened`. Holds layers, and JSON notes, under the names they are given."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextlib.contextmanager
    def opened(cls, out: Path, command: Mapping[str, Any], *, restart: bool) -> Iterator[WorkFolder]:
        """The folder of what will become `out`, locked; `command` says what is computed, from what.

        restart: throw away what is there. Raises RequestError if it is of another command, or another
        process has it; CheckpointError for a disk that is full or closed.
        """
        path = out.with_name(f"{out.name}.unfinished")
        with _disk(path):
            path.mkdir(parents=True, exist_ok=True)
            with _locked(path):
                work = cls(path)
                if restart and (path / _COMMAND).exists():
                    for entry in sorted(path.iterdir(), reverse=True):  # layers first: what is left continues
                        remove(entry)
                work._check_command(json.loads(json.dumps(command)))
                yield work

    def layers(self) -> int:
        """How many layers are finished: 0 ... n - 1."""
        count = 0
        while self._layer(count).exists():
            count += 1
        return count

    def keep_layer(self, number: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Put a finished layer on the disk."""
        fresh = self._fresh()
        planned = [PlannedTensor.of(name, tensor) for name, tensor in tensors.items()]
        write_safetensors(fresh, planned, {"about": json.dumps(about)})
        self._place(fresh, self._layer(number))

    def layer(self, number: int) -> tuple[SafetensorsFile, dict[str, Any]]:
        """A finished layer, its tensors not yet read, and what was noted about it."""
        file = SafetensorsFile(self._layer(number))
        return file, json.loads(file.metadata["about"])

    def note(self, name: str) -> dict[str, Any] | None:
        """A note written earlier, by this run or one before it."""
        path = self.path / f"{name}.json"
        return read_json(path) if path.exists() else None

    def keep_note(self, name: str, value: Mapping[str, Any]) -> None:
        fresh = self._fresh()
        fresh.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        self._place(fresh, self.path / f"{name}.json")

    def discard(self) -> None:
        """The output is there: nothing of this is needed."""
        remove(self.path)

    def _layer(self, number: int) -> Path:
        return self.path / f"layer-{number:05d}.safetensors"

    def _fresh(self) -> Path:
        for stale in self.path.glob(".*.tmp"):  # the lock is ours: nobody else is writing
            remove(stale)
        return self.path / f".{secrets.token_hex(4)}.tmp"

    def _place(self, fresh: Path, place: Path) -> None:
        with fresh.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(fresh, place)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _check_command(self, command: dict[str, Any]) -> None:
        place = self.path / _COMMAND
        if not place.exists():
            others = [entry.name for entry in self.path.iterdir() if not entry.name.endswith(".tmp")]
            if others:
                raise RequestError(
                    f"{self.path} holds {others[0]!r}, but no {_COMMAND}: it is not of qwenkit quantize.",
                    "Move it away, or choose another --out.",
                )
            self.keep_note(_COMMAND.removesuffix(".json"), command)
            return
        begun = read_json(place)
        if begun != command:
            raise RequestError(
                f"{self.path} holds {self.layers()} layers of another quantization: "
                f"{_difference(begun, command)}.",
                "Repeat the command it was begun with to continue, or add --restart to throw them away.",
            )


def _difference(begun: Mapping[str, Any], command: Mapping[str, Any]) -> str:
    """The first value in which they differ, in words."""
    for key in sorted({*begun, *command}):
        old, new = begun.get(key), command.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and old != new:
            return _difference(old, new)
        if old != new:
            return f"{key} was {old!r} and is now {new!r}"
    return "nothing differs"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RequestError(
                f"Another process is working in {path}.", "Wait for it, or choose another --out."
            ) from error
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        with disk_errors(path, "writing"):
            yield
    except DownloadError as error:  # the name disk_errors has for a full disk
        raise CheckpointError(error.problem, "Free space there, or choose another --out.") from error
