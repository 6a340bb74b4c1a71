"""Tokens a second, GB/s, TOP/s and spreads, against sums done by hand."""

from __future__ import annotations

import pytest

from qwenkit.bench.result import EngineResult, Limits, Sample, Spread
from qwenkit.bench.workload import Point, Workload


def test_points_of_a_workload() -> None:
    work = Workload(prompt=100, decode=20, depths=(500,), concurrency=(1, 8), repeats=2)
    assert work.points() == [
        Point("plain", 100, 21),
        Point("depth", 500, 21),
        Point("concurrency", 100, 21, 8),  # one at once is the plain point
    ]
    assert (work.context, work.sequences, work.cache_tokens) == (521, 8, 8 * 121)


def test_every_engine_gets_the_same_prompts_and_no_two_are_alike() -> None:
    point = Point("concurrency", 50, 2, 8)
    prompts = point.prompts(1000, turn=1)
    assert prompts == point.prompts(1000, turn=1)
    assert prompts[0] != point.prompts(1000, turn=2)[0]
    assert len({tuple(prompt) for prompt in prompts}) == 8
    assert {len(prompt) for prompt in prompts} == {50}
    assert max(map(max, prompts)) < 1000
    assert min(map(min, prompts)) >= 0


def test_rates_of_one_sequence() -> None:
    rates = Sample((2.0,), 6.0, (41,)).rates(Point("plain", 500, 41))
    # 500 tokens in 2 s; 40 steps in the 4 s after the first token; 41 tokens in 6 s
    assert rates == {"ttft_s": 2.0, "prefill_tok_s": 250.0, "decode_tok_s": 10.0, "output_tok_s": 41 / 6}


def test_rates_of_many_sequences_have_no_speed_of_decoding() -> None:
    rates = Sample((1.0, 3.0), 10.0, (50, 50)).rates(Point("concurrency", 5, 50, 2))
    assert rates == {"ttft_s": 2.0, "output_tok_s": 10.0}


def test_physical_units() -> None:
    point = Point("plain", 500, 41)
    facts = {"weight_bytes": 2_000_000_000, "linear_operations": 3_000_000_000, "output_operations": 10**9}
    result = EngineResult(
        "x", facts, samples={point: [Sample((2.0,), 6.0, (41,)), Sample((1.0,), 6.0, (41,))]}
    )
    assert result.spreads(point)["ttft_s"] == Spread(1.5, 1.0, 2.0)
    assert result.spreads(point)["decode_tok_s"] == Spread(9.0, 8.0, 10.0)
    assert result.weight_gb_s(point) == pytest.approx(18.0)
    assert result.prefill_tops(point) == pytest.approx((500 * 3e9 + 1e9) / 1.5 / 1e12)
    assert EngineResult("y").weight_gb_s(point) is None
    assert EngineResult("y").spreads(point) == {}


def test_limits_are_medians_and_may_be_unknown() -> None:
    limits = Limits()
    assert limits.read_gb_s is None
    for read in (30e9, 36e9, 33e9):
        limits.add({"read": read, "peaks": {"int8_amx": 7e12}})
    limits.add({"read": None, "peaks": {}})
    assert limits.read_gb_s == 33.0
    assert limits.peak_tops("int8_amx") == 7.0
    assert limits.peak_tops(None) is None
    assert limits.peak_tops("fma") is None
