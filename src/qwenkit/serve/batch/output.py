"""The answers to a batch: a JSON Lines file that only grows, and from which an interrupted run goes on.

Each answer is one write at the end of the file. A last line that is torn (the process was killed, the disk
was full) is cut off when the file is next opened, and its request made again.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from qwenkit.core import QwenkitError, RequestError
from qwenkit.serve.batch.input import BadLine, BatchLine, digest

_START = b'{"id": "batch_req_'


class BatchOutput:
    """A context manager; only one may have a file open. Raises QwenkitError for a file in use, not writable,
    or with lines that are no answers.

    answered: digests of the custom_ids that earlier runs answered; reported: numbers of lines they found bad;
    failed: how many answers in all are no success. again: forget those, so that they are asked for again.
    """

    def __init__(self, path: Path, *, again: bool = False) -> None:
        self.answered: set[bytes] = set()
        self.reported: set[int] = set()
        self.failed = 0
        self._path = path
        self._file = _open(path)
        try:
            self._lock(self._file)
            if not os.path.sameopenfile(self._file, other := _open(path)):  # replaced before we had the lock
                self._refuse()
            os.close(other)
            self._read()
            if again and self.failed:
                self._drop_failures()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def has(self, line: BatchLine | BadLine) -> bool:
        """Whether an earlier run wrote an answer to it."""
        if isinstance(line, BadLine):
            return line.number in self.reported
        return digest(line.custom_id) in self.answered

    def answer(self, line: BatchLine, status: int, request_id: str | None, body: Any) -> None:
        """Append what was answered, a refusal too."""
        response = {"status_code": status, "request_id": request_id, "body": body}
        self._append({"custom_id": line.custom_id, "response": response, "error": None})

    def unanswered(self, line: BatchLine, code: str, message: str) -> None:
        """Append that no answer came."""
        error = {"code": code, "message": message}
        self._append({"custom_id": line.custom_id, "response": None, "error": error})

    def report(self, line: BadLine) -> None:
        """Append what is wrong with a line that could not be asked."""
        error = {"code": line.code, "message": line.message, "param": line.param, "line": line.number}
        self._append({"custom_id": line.custom_id, "response": None, "error": error})

    def _append(self, value: dict[str, Any]) -> None:
        value = {"id": f"batch_req_{uuid.uuid4().hex}", **value}
        try:
            _write(self._file, _json(value))
        except OSError as error:
            raise QwenkitError(
                f"Cannot write {self._path}: {error.strerror}.",
                "Make room; a second start goes on from there.",
            ) from error
        self.failed += not _succeeded(value["response"])

    def _note(self, value: dict[str, Any]) -> None:
        error, response = value.get("error"), value.get("response")
        if isinstance(error, dict) and isinstance(error.get("line"), int):
            self.reported.add(error["line"])
        else:
            self.answered.add(digest(str(value.get("custom_id"))))
        self.failed += not _succeeded(response)

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._refuse()

    def _refuse(self) -> NoReturn:
        raise QwenkitError(f"Another run is writing {self._path}.", "Wait for its end, or name another file.")

    def _read(self) -> None:
        """Learn what is there, and mend the end: a last line without a newline is whole if it is JSON."""
        raw = b"\n"
        for number, begin, raw in self._lines():
            value = _parsed(raw)
            torn = not raw.endswith(b"\n") and (number > 1 or _START.startswith(raw[: len(_START)]))
            if value is not None:
                self._note(value)
            elif torn:
                os.ftruncate(self._file, begin)
                return
            else:
                raise RequestError(
                    f"Line {number} of {self._path} is no answer of a batch.",
                    "Name another file for the output, or take the line out.",
                )
        if not raw.endswith(b"\n"):
            os.write(self._file, b"\n")

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Number, offset and bytes of each."""
        begin = 0
        with self._path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                yield number, begin, raw
                begin += len(raw)

    def _drop_failures(self) -> None:
        """Replace the file by one without them, in one step, and hold that one."""
        fresh = self._path.with_name(f".{self._path.name}.tmp")
        file = _open(fresh)
        try:
            self._lock(file)
            os.ftruncate(file, 0)
            self.answered, self.reported, self.failed = set(), set(), 0
            for _, _, raw in self._lines():
                value = _parsed(raw)
                if value is not None and _succeeded(value["response"]):
                    _write(file, raw)
                    self._note(value)
            os.fsync(file)
            os.replace(fresh, self._path)
        except BaseException:
            os.close(file)
            raise
        os.close(self._file)
        self._file = file


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise RequestError(
            f"Cannot write {path}: {error.strerror}.", "Name a file in a folder that exists."
        ) from error


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """The answer on this line, if it is one."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(value, dict) and value.keys() >= {"custom_id", "response", "error"}
    return value if whole else None


def _succeeded(response: Any) -> bool:
    return isinstance(response, dict) and response.get("status_code") == 200


def _json(value: dict[str, Any]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a character of another server's; JSON can spell it
        return json.dumps(value).encode() + b"\n"
