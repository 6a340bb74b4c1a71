"""A batch as a person watches it: a bar with speed and the time that is left, or lines for a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qwenkit.cli.terminal import is_terminal

_LINE_S = 30.0  # between two lines of a log


class BatchProgress:
    """Writes to standard error. A context manager: leaving it ends the bar. silent: only notes are shown."""

    def __init__(self, *, silent: bool) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            speed_estimate_period=300,
            disable=silent or not is_terminal(sys.stderr),
        )
        self._silent = silent
        self._lines = not silent and not is_terminal(sys.stderr)
        self._task = self._bar.add_task("Requests", total=None, speed="")
        self._total = self._done = self._failed = self._tokens = 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> BatchProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, lines: int) -> None:
        self._total = lines
        self._began = self._said = time.monotonic()
        self._bar.update(self._task, total=lines)

    def passed(self) -> None:
        """Such lines are no measure of the time that is left: they are taken off the total."""
        self._total -= 1
        self._bar.update(self._task, total=self._total)

    def answered(self, failed: bool, prompt_tokens: int, completion_tokens: int) -> None:
        self._done += 1
        self._failed += failed
        self._tokens += completion_tokens or prompt_tokens
        speed = f"{self._tokens / max(1e-3, time.monotonic() - self._began):.0f} tok/s"
        if self._failed:
            speed += f", {self._failed} failed"
        self._bar.update(self._task, advance=1, speed=speed)
        if self._lines and time.monotonic() - self._said > _LINE_S:
            self._said = time.monotonic()
            left = (self._said - self._began) / self._done * (self._total - self._done)
            typer.echo(f"{self._done}/{self._total} requests, {speed}, {left:.0f} s left", err=True)

    def notice(self, text: str) -> None:
        """A note that need not be."""
        if not self._silent:
            self.note(text)

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)
