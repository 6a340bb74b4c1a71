"""What a person sees while bytes arrive: one line, or a bar when standard error is a terminal.

Knows no file and no hub.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


def say(line: str) -> None:
    """One line on standard error, where it never mixes with a model's answer."""
    print(line, file=sys.stderr, flush=True)


def gigabytes(count: int) -> str:
    """Bytes in the unit a person compares: 491400064 -> '491.4 MB'."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


class Progress:
    """A bar over `total` bytes; without a terminal one line at the start and nothing more."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title = title
        self._total = total
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        if not sys.stderr.isatty():
            say(self._title if self._total is None else f"{self._title} ({gigabytes(self._total)})")
            return self
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bars.start()
        self._task = self._bars.add_task(self._title, total=self._total)
        return self

    def advance(self, count: int) -> None:
        """`count` more bytes; negative when a transfer had to begin again. Safe from any thread."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, count)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
