"""The results as one JSON value. Keys and units are described in docs/bench.md."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import qwenkit
from qwenkit.bench.result import EngineResult, Limits, share
from qwenkit.bench.rounds import OWN, Rounds
from qwenkit.bench.workload import Point


def summarize(
    rounds: Rounds, machine: Mapping[str, Any], absent: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Our own headline numbers on top, then every engine in the order it ran. Unknown values are None.

    absent: engines that were asked for and did not run at all, with the reason.
    """
    own = rounds.results[OWN]
    points = rounds.workload.points()
    plain, busiest = points[0], max(points, key=lambda point: point.sequences)
    weights = own.weight_gb_s(plain)
    tops = own.prefill_tops(plain)
    peak = rounds.limits.peak_tops(_peak(own, plain))
    return {
        "qwenkit": qwenkit.__version__,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": own.facts["model"],
        "weights": own.facts["form"],
        "decode_tok_s": own.median(plain, "decode_tok_s"),
        "prefill_tok_s": own.median(plain, "prefill_tok_s"),
        "ttft_s": own.median(plain, "ttft_s"),
        "output_tok_s": own.median(busiest, "output_tok_s"),
        "weight_gb_s": weights,
        "read_gb_s": rounds.limits.read_gb_s,
        "bandwidth_share": share(weights, rounds.limits.read_gb_s),
        "prefill_tops": tops,
        "peak_tops": peak,
        "peak_share": share(tops, peak),
        "load_s": own.facts["load_s"],
        "start_s": own.start_s,
        "peak_rss_mb": own.peak_rss_mb,
        "kernels": own.facts["kernels"],
        "attention": own.facts["attention"],
        "machine": {**machine, "threads": own.facts["threads"], **_limits(rounds.limits)},
        "workload": asdict(rounds.workload),
        "rounds": {"finished": rounds.finished, "asked": rounds.workload.repeats},
        "incomplete": rounds.incomplete,
        "engines": [_engine(result, own, rounds) for result in rounds.results.values()],
        "absent": dict(absent or {}),
    }


def _peak(own: EngineResult, point: Point) -> str | None:
    kind = own.facts["peaks"][str(point.prompt)]
    return None if kind is None else str(kind)


def _limits(limits: Limits) -> dict[str, Any]:
    return {
        "read_gb_s": [value / 1e9 for value in limits.read],
        "peak_tops": {kind: [value / 1e12 for value in values] for kind, values in limits.peaks.items()},
    }


def _engine(result: EngineResult, own: EngineResult, rounds: Rounds) -> dict[str, Any]:
    return {
        "name": result.name,
        "failure": result.failure,
        "start_s": result.start_s,
        "peak_rss_mb": result.peak_rss_mb,
        **result.facts,
        "points": [_point(result, own, point, rounds) for point in rounds.workload.points()],
    }


def _point(result: EngineResult, own: EngineResult, point: Point, rounds: Rounds) -> dict[str, Any]:
    spreads = result.spreads(point)
    ratios = {}
    for key, spread in spreads.items():
        ours = own.median(point, key)
        if result is not own and ours is not None:
            ratios[key] = ours / spread.median
    weights = result.weight_gb_s(point)
    return {
        **asdict(point),
        **{key: asdict(spread) for key, spread in spreads.items()},
        "weight_gb_s": weights,
        "bandwidth_share": share(weights, rounds.limits.read_gb_s),
        "prefill_tops": result.prefill_tops(point),
        "qwenkit_over_this": ratios,
        "samples": [asdict(sample) for sample in result.samples.get(point, [])],
    }
