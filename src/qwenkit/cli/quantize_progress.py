"""A quantization as a person watches it: a bar with the time that is left, and a line for each layer."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm

from qwenkit.quantize import Watch


class QuantizeProgress(Watch):
    """Writes to standard error. A context manager: leaving it ends the bar."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._bar: Any = None

    def __enter__(self) -> QuantizeProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end()

    def begin(self, what: str, tokens: int) -> None:
        self._end()
        self._bar = tqdm(
            total=tokens,
            desc=what,
            leave=False,
            disable=None,  # no bar where standard error is no terminal
            bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left",
        )

    def tokens(self, count: int) -> None:
        if self._bar is not None:
            self._bar.update(count)

    def layer(self, number: int, errors: Mapping[str, float], seconds: float) -> None:
        shown = "  ".join(f"{name} {error:.3%}" for name, error in errors.items())
        self.note(f"layer {number + 1}/{self._layers}, {seconds:.0f} s  error: {shown}")

    def note(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
