"""Turns: round after round every engine runs the whole workload, so that all see the same machine.

Knows processes and the order of things; the numbers are made in result.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenkit.bench.interruption import Interrupted
from qwenkit.bench.peers.process import EngineError, EngineProcess
from qwenkit.bench.result import EngineResult, Limits, Sample
from qwenkit.bench.workload import Point, Workload

_TICKS = os.sysconf("SC_CLK_TCK")
OWN = "qwenkit"
_LOAD_S = 900.0  # for an engine to load its model: it may have to convert or compile it
_SHORT_S = 0.5  # the system counts in hundredths of a second: less says nothing about who used the cores


@dataclass(frozen=True)
class Contender:
    """An engine that will run: which python, which adapter, what it is asked to load."""

    name: str
    python: str
    adapter: Path
    job: Mapping[str, Any]
    variables: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)  # what is known of it beforehand


class Rounds:
    """Runs `workload` on every contender; `results` and `limits` fill up as it goes.

    The first contender must be qwenkit itself: it also measures the machine, in each of its turns, and its
    failure is raised; any other engine's failure ends its row. timeout_s: for one measurement; who needs
    longer has failed. roomy: asked after each turn whether a process may stay loaded until its next. save:
    called after every round, and once more where qwenkit fails or is interrupted after its first turn.
    say: progress, in words.
    """

    def __init__(
        self,
        contenders: Sequence[Contender],
        workload: Workload,
        *,
        timeout_s: float,
        roomy: Callable[[], bool] = lambda: True,
        save: Callable[[], object] = lambda: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.contenders = contenders
        self.workload = workload
        self.results = {contender.name: EngineResult(contender.name) for contender in contenders}
        self.limits = Limits()
        self.finished = 0  # rounds
        self.ended: str | None = None  # why before the last round; None if it was not, or is not over
        self._timeout_s = timeout_s
        self._roomy = roomy
        self._save = save
        self._say = say
        self._running: dict[str, EngineProcess] = {}
        self._vocabulary = 0
        self._peaks: list[str] = []

    @property
    def incomplete(self) -> str | None:
        """Why there are fewer rounds than asked for; None once all are finished."""
        if self.finished == self.workload.repeats:
            return None
        return self.ended or "It still runs, or was killed."

    def run(self) -> None:
        """Raises EngineError if qwenkit fails, Interrupted; no process outlives this."""
        try:
            for number in range(1, self.workload.repeats + 1):
                for contender in self.contenders:
                    if self.results[contender.name].failure is None:
                        self._say(f"Round {number} of {self.workload.repeats}: {contender.name}")
                        self._turn(contender)
                self.finished = number
                self._save()
        except (EngineError, Interrupted) as error:
            self.ended = str(error)
            if self.results[OWN].peak_rss_mb is not None:  # its first turn came to the end
                self._save()
            raise
        finally:
            with ExitStack() as closing:  # an interrupt while one is closed must not spare the others
                for process in self._running.values():
                    closing.callback(process.close)

    def _turn(self, contender: Contender) -> None:
        result = self.results[contender.name]
        try:
            process = self._running.get(contender.name) or self._start(contender, result)
            for point in self.workload.points():
                samples = result.samples.setdefault(point, [])
                samples.append(self._measure(process, point, turn=len(samples) + 1))
            result.peak_rss_mb = max(result.peak_rss_mb or 0, self._ask(process, "memory")["peak_rss_mb"])
            if contender.name == OWN:
                self.limits.add(self._ask(process, "limits", kinds=self._peaks))
        except EngineError as error:
            if contender.name in self._running:  # it may only have said no
                self._running.pop(contender.name).close()
            if contender.name == OWN:
                raise
            result.failure = f"{error.problem} {error.remedy}".strip()
            self._say(result.failure)
            return
        process.pause()
        if not self._roomy():
            process.close()
            del self._running[contender.name]

    def _start(self, contender: Contender, result: EngineResult) -> EngineProcess:
        begun = time.perf_counter()
        process = EngineProcess(contender.name, contender.python, contender.adapter, contender.variables)
        self._running[contender.name] = process
        facts = process.call("load", timeout_s=max(_LOAD_S, self._timeout_s), job=dict(contender.job))
        result.start_s = result.start_s or time.perf_counter() - begun
        facts = {**contender.facts, **facts}
        if contender.name == OWN:
            self._vocabulary = facts["vocabulary"]
            rows = sorted(
                {1, *(p for point in self.workload.points() for p in (point.prompt, point.sequences))}
            )
            facts |= self._ask(process, "kernels", rows=rows)
            self._peaks = sorted({kind for kind in facts["peaks"].values() if kind is not None})
        else:
            own = self.results[OWN].facts
            facts |= {key: own[key] for key in ("linear_operations", "output_operations")}
        result.facts = result.facts or facts
        # What happens only once (packing, compiling, first touch of memory) belongs to no measurement.
        warm = Point("plain", self.workload.prompt, 2)
        self._ask(process, "run", prompts=warm.prompts(self._vocabulary), new=warm.new)
        return process

    def _measure(self, process: EngineProcess, point: Point, turn: int) -> Sample:
        busy, own, begun = _busy_seconds(), process.cpu_seconds(), time.perf_counter()
        prompts = point.prompts(self._vocabulary, turn)
        told = self._ask(process, "run", prompts=prompts, new=point.new)
        wall = time.perf_counter() - begun
        after = _busy_seconds()
        others = None
        if busy is not None and after is not None and wall > _SHORT_S:
            others = max(0.0, (after - busy - (process.cpu_seconds() - own)) / wall)
        sample = Sample(tuple(told["first_s"]), told["total_s"], tuple(told["tokens"]), others)
        if sample.tokens != (point.new,) * point.sequences:
            process.close()
            raise EngineError(
                f"{process.name} wrote {list(sample.tokens)} tokens instead of {point.new} each."
            )
        return sample

    def _ask(self, process: EngineProcess, call: str, **arguments: Any) -> dict[str, Any]:
        return process.call(call, timeout_s=self._timeout_s, **arguments)


def _busy_seconds() -> float | None:
    """Core seconds that were not idle since the machine started, stolen ones included."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, fields)
    return (user + nice + system + irq + soft + steal) / _TICKS
