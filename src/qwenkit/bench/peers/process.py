"""The other end of worker.py: starts an engine's process, asks it, and survives whatever it does.

Between its turns a process is stopped (SIGSTOP), so that threads that wait by spinning cost nobody time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwenkit.core import QwenkitError

WORKER = Path(__file__).with_name("worker.py")
_LONGEST_ANSWER = 1 << 22  # bytes; more is not an answer
_LAST_WORDS = 1 << 16  # bytes: a backtrace may follow what matters
_FAILURE = re.compile(r"error|assert|fatal|exception|out of memory", re.IGNORECASE)
_LONGER = "To wait longer, raise --timeout."
_TICKS = os.sysconf("SC_CLK_TCK")


class EngineError(QwenkitError):
    """An engine's process crashed, hung, answered nonsense, or said that it cannot do what was asked."""


class EngineProcess:
    """One engine in one process. Every method raises EngineError naming the engine; it is closed then.

    name: for errors; python: interpreter; adapter: module file for the worker; variables: added to the
    environment. Close it, or use it as a context manager.
    """

    def __init__(self, name: str, python: str, adapter: Path, variables: Mapping[str, str]) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        try:
            self._process = subprocess.Popen(
                [python, "-u", str(WORKER), str(adapter)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
                env=environment | dict(variables), start_new_session=True, bufsize=0,
            )  # fmt: skip
        except OSError as error:
            raise EngineError(f"{name} did not start: {python}: {error.strerror}.") from error
        self._stopped = False

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def call(self, call: str, *, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """Ask and wait for the answer, at most `timeout_s` seconds."""
        self.resume()
        line = json.dumps({"call": call, **arguments}).encode() + b"\n"
        try:
            self._write(line, timeout_s)
            raw = self._read_line(timeout_s)
            try:
                answer = json.loads(raw)
            except ValueError:
                answer = None
            if not isinstance(answer, dict) or "ok" not in answer:
                shown = raw[:80].decode(errors="replace").strip()
                raise EngineError(f"{self.name} answered {call} with something else than JSON: {shown!r}.")
        except BaseException:
            self.close()
            raise
        if not answer.pop("ok"):
            problem = str(answer.get("problem") or "no reason given")
            raise EngineError(f"{self.name} could not {call}: {problem}", str(answer.get("remedy") or ""))
        return answer

    def _write(self, line: bytes, timeout_s: float) -> None:
        pipe = self._process.stdin
        if pipe is None or not self.alive:
            raise self._ended()
        descriptor, deadline = pipe.fileno(), time.monotonic() + timeout_s
        os.set_blocking(descriptor, False)
        with selectors.DefaultSelector() as ready:
            ready.register(descriptor, selectors.EVENT_WRITE)
            while line:
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise EngineError(
                        f"{self.name} took no question for {timeout_s:.0f} s; it was ended.", _LONGER
                    )
                try:
                    line = line[os.write(descriptor, line) :]
                except BrokenPipeError as error:
                    raise self._ended() from error

    def _read_line(self, timeout_s: float) -> bytes:
        pipe = self._process.stdout
        assert pipe is not None
        deadline, received = time.monotonic() + timeout_s, b""
        with selectors.DefaultSelector() as ready:
            ready.register(pipe, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    raise EngineError(
                        f"{self.name} gave no answer in {timeout_s:.0f} s; it was ended.", _LONGER
                    )
                piece = os.read(pipe.fileno(), 1 << 16)
                if not piece:
                    raise self._ended()
                received += piece
                if len(received) > _LONGEST_ANSWER:
                    raise EngineError(f"{self.name} answered with more than {_LONGEST_ANSWER} bytes.")
        return received

    def _ended(self) -> EngineError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        code = self._process.poll()
        if code is None:
            how = "closed its output"
        elif code < 0:
            how = f"crashed with {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        last = self.last_words()
        return EngineError(f"{self.name} {how}." + (f" Its last words: {last}" if last else ""))

    def last_words(self) -> str:
        """The last line of stderr that speaks of an error, else the last that says anything."""
        if self._log.closed:
            return ""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LAST_WORDS))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines()]
        said = [line[:300] for line in reversed(lines) if line]
        return next((line for line in said if _FAILURE.search(line)), said[0] if said else "")

    def cpu_seconds(self) -> float:
        """User and system time of all threads so far; 0 where /proc does not tell."""
        try:
            text = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return 0.0
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def pause(self) -> None:
        """Stop all its threads until the next call."""
        if self.alive and not self._stopped:
            self._signal(signal.SIGSTOP)
            self._stopped = True

    def resume(self) -> None:
        if self._stopped:
            self._signal(signal.SIGCONT)
            self._stopped = False

    def close(self) -> None:
        """End the process and what it started; the memory is free afterwards."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
