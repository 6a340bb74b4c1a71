"""Tells an engine at work from one that hangs, by the beats it sends. Knows no processes and kills nothing.

Time is what its owner says has passed, so that a machine asleep, or one that was stopped together with the
engine, is not held against the engine.
"""

from __future__ import annotations

from qwenkit.serve.engine.messages import EngineNumbers

SILENT_S = 10.0
"""Without a beat, of which there is one a second, until the engine counts as stalled."""


class Watchdog:
    """step_s: what a step may take, and how long an engine may be silent, before there is no hope for it;
    0 waits for ever."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self.begin()

    def begin(self) -> None:
        """A new life of the engine."""
        self._silent = self._still = 0.0
        self._steps = -1
        self._busy = False

    def heard(self, numbers: EngineNumbers) -> None:
        """A beat has come."""
        self._silent = 0.0
        self._busy = numbers.running + numbers.waiting > 0
        if numbers.steps != self._steps or not self._busy:
            self._still = 0.0
        self._steps = numbers.steps

    def passed(self, seconds: float) -> None:
        self._silent += seconds
        if self._busy:
            self._still += seconds

    @property
    def stalled(self) -> str:
        """What is wrong, or nothing."""
        if self.hopeless and self._still > self._step_s:
            return f"a step has taken more than {self._step_s:g} s"
        if self.hopeless or self._silent > SILENT_S:
            return f"it has not been heard of for {self._silent:.0f} s"
        return ""

    @property
    def hopeless(self) -> bool:
        """It should be ended."""
        return self._step_s > 0 and max(self._silent, self._still) > self._step_s
