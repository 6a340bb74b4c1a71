"""The correction against least squares in float64, and what it is for: outputs nearer to the original's."""

from __future__ import annotations

import pytest
import torch
from tiny_sources import settings

from qwenkit.core import RequestError, UnsupportedError
from qwenkit.quantize.block_pass import BlockPass
from qwenkit.quantize.calibration import read_calibration
from qwenkit.quantize.drift import Correction, Drift
from qwenkit.quantize.hidden import HiddenStates
from qwenkit.quantize.layers import LAYERS, as_it_was, linear_of, round_block
from qwenkit.quantize.moments import SecondMoments
from qwenkit.quantize.source import Source


def inputs(n: int, size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    mixing = torch.randn(size, size, generator=generator) / size**0.5
    x = torch.randn(n, size, generator=generator) @ mixing
    noise = 0.1 * torch.randn(n, size, generator=generator) @ mixing
    return (x + noise + 0.05 * x.roll(1, dims=1)).to(dtype), x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_corrected_weight_is_the_damped_least_squares_one(dtype, share):
    then, now = inputs(300, 24, dtype)
    weight = torch.randn(7, 24, generator=torch.Generator().manual_seed(1))
    moments, drift = SecondMoments(24), Drift(24)
    with torch.no_grad():
        for part in range(0, 300, 70):
            moments.add(now[part : part + 70])
            drift.add(then[part : part + 70], now[part : part + 70])
        mean = moments.mean()
        found = Correction(mean, drift.mean(), share).applied(weight)
    # min |W then - V now|^2 / n + damping |V - W|^2, by lines that stand for the second term
    x, y = now.double(), then.double() @ weight.double().t()
    damping = 0.2 * float(mean.diagonal().mean())
    lines = (300 * damping) ** 0.5 * torch.eye(24).double()
    wanted = torch.cat((y, lines @ weight.double().t()))
    best = torch.linalg.lstsq(torch.cat((x, lines)), wanted).solution.t()
    wanted = weight + share * (best - weight)
    tolerance = 2e-3 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    assert (wanted - weight).abs().max() > 0.01  # so something was corrected


def test_without_drift_nothing_changes():
    _, now = inputs(50, 16, torch.float32)
    moments, drift = SecondMoments(16), Drift(16)
    moments.add(now)
    drift.add(now, now)
    weight = torch.randn(3, 16)
    assert torch.equal(Correction(moments.mean(), drift.mean(), 1.0).applied(weight), weight)


def test_moments_that_are_none_are_refused():
    with pytest.raises(UnsupportedError, match="not positive definite"):
        Correction(-torch.eye(4), torch.zeros(4, 4), 0.5).applied(torch.ones(2, 4))


def test_a_share_is_a_share():
    with pytest.raises(RequestError, match=r"correction=1\.5"):
        settings(correction=1.5)


def test_the_last_states_come_nearer_to_the_original_s(qwen2):
    source = Source(qwen2, torch.float32)
    texts = read_calibration(source, settings()).texts
    embedding = source.tensor("transformer.wte.weight")
    distance = {}
    for correction in (0.0, 0.5):
        source.forget()
        now, then = (HiddenStates.embed(texts, embedding, source.config) for _ in range(2))
        with torch.no_grad():
            for number in range(source.config.num_layers):
                block = source.block(number)
                weights = {name: linear_of(block, name).weight for name in LAYERS}
                original = BlockPass(as_it_was(block), then)
                how = dict.fromkeys(LAYERS, settings().rounding)
                round_block(BlockPass(block, now), how, original=original, correction=correction)
                assert all(linear_of(original.block, name).weight is weights[name] for name in LAYERS)
        distance[correction] = float((now.values - then.values).square().mean())
    assert distance[0.5] < 0.95 * distance[0.0]
