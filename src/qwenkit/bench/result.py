"""From seconds to numbers: tokens a second, GB/s, TOP/s, medians and spreads. Pure arithmetic."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qwenkit.bench.workload import Point


@dataclass(frozen=True)
class Sample:
    """One run of one point: seconds to each sequence's first token, to the end of all, tokens of each.

    others: cores that other processes used meanwhile, None where unknown.
    """

    first_s: tuple[float, ...]
    total_s: float
    tokens: tuple[int, ...]
    others: float | None = None

    def rates(self, point: Point) -> dict[str, float]:
        """ttft_s and output_tok_s; for a single sequence also prefill_tok_s and decode_tok_s.

        Sequences that run together are read and written at the same time, so their decoding has no speed
        of its own. ttft_s is the mean over the sequences.
        """
        found = {
            "ttft_s": statistics.fmean(self.first_s),
            "output_tok_s": sum(self.tokens) / self.total_s,
        }
        if point.sequences == 1:
            found["prefill_tok_s"] = point.prompt / self.first_s[0]
            if self.tokens[0] > 1:
                found["decode_tok_s"] = (self.tokens[0] - 1) / (self.total_s - self.first_s[0])
        return found


@dataclass(frozen=True)
class Spread:
    """A median with the lowest and the highest value behind it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class EngineResult:
    """All that was measured of one engine; `failure` says why there is no more, in a sentence."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    start_s: float | None = None  # from starting the process to a loaded model
    peak_rss_mb: float | None = None
    samples: dict[Point, list[Sample]] = field(default_factory=dict)
    failure: str | None = None

    def spreads(self, point: Point) -> dict[str, Spread]:
        """Every rate of a point over the rounds; empty if it never ran."""
        rates = [sample.rates(point) for sample in self.samples.get(point, [])]
        return {key: Spread.of([one[key] for one in rates]) for key in (rates[0] if rates else ())}

    def median(self, point: Point, key: str) -> float | None:
        found = self.spreads(point).get(key)
        return None if found is None else found.median

    def weight_gb_s(self, point: Point) -> float | None:
        """Bytes of weights that decoding read a second, in GB."""
        speed, nbytes = self.median(point, "decode_tok_s"), self.facts.get("weight_bytes")
        return None if speed is None or nbytes is None else speed * nbytes / 1e9

    def prefill_tops(self, point: Point) -> float | None:
        """Operations of linear layers a second while reading the prompt, in units of 10^12."""
        ttft, layers = self.median(point, "ttft_s"), self.facts.get("linear_operations")
        if ttft is None or layers is None or point.sequences > 1:
            return None
        return float(layers * point.prompt + self.facts["output_operations"]) / ttft / 1e12


@dataclass
class Limits:
    """The machine's own speeds over the rounds: bytes read a second, operations a second by kind."""

    read: list[float] = field(default_factory=list)
    peaks: dict[str, list[float]] = field(default_factory=dict)

    def add(self, measured: dict[str, Any]) -> None:
        if measured["read"] is not None:
            self.read.append(measured["read"])
        for kind, value in measured["peaks"].items():
            self.peaks.setdefault(kind, []).append(value)

    @property
    def read_gb_s(self) -> float | None:
        return statistics.median(self.read) / 1e9 if self.read else None

    def peak_tops(self, kind: str | None) -> float | None:
        return statistics.median(self.peaks[kind]) / 1e12 if kind in self.peaks else None


def share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
