"""`qwenkit serve` in a process of its own, as a user starts it, on a free port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

WAIT_S = 120.0  # for what must happen at some time; only a failing test waits so long

_PROGRAM = "from qwenkit.cli.main import main; main()"


class RunningServer:
    """Listening when constructed; `ready()` waits for the model. What it says on stderr is kept."""

    def __init__(self, model: Path | str, *options: str, variables: Mapping[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self._said = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, "serve", str(model), "--port", "0", *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=os.environ | dict(variables or {}),
        )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()
        self.url = self.wait_for("Listening on ").split("Listening on ")[1].split(",")[0]

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._said:
                self.lines.append(line.rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self.lines.append("(ended)")
            self._said.notify_all()

    def wait_for(self, words: str) -> str:
        """The first line with these words."""

        def found() -> bool:
            return any(words in line or line == "(ended)" for line in self.lines)

        with self._said:
            assert self._said.wait_for(found, WAIT_S), self.lines
        line = next((line for line in self.lines if words in line), None)
        assert line is not None, self.lines
        return line

    def ready(self) -> RunningServer:
        self.wait_for("Ready: ")
        return self

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT_S, **options)

    def engine_pid(self) -> int:
        """The process that this one started."""
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                except OSError:  # it has ended
                    continue
                if int(fields[1]) == self.process.pid and fields[0] != "Z":
                    return int(folder.name)
        raise AssertionError("The server has no child process.")

    def engine_numbers(self) -> dict[str, float]:
        """Gauges of /metrics by name, without their prefix."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line.startswith("qwenkit_engine_"))
        return {name.removeprefix("qwenkit_engine_"): float(value) for name, value in pairs}

    def stop(self) -> int:
        """End it, gently if it can; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(WAIT_S)
        finally:
            self.process.kill()


def eventually(true: Callable[[], object]) -> None:
    """Wait until it is so."""
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "It never came true."
        time.sleep(0.02)


def events(text: str) -> list[str]:
    """The data of a stream's events. Every event must be one line of data and an empty one."""
    parts = text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [part.removeprefix("data: ") for part in parts]
