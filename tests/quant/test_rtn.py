"""Rounding weights: errors against bounds and a restatement, shapes that do not divide, extreme values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native
from qwenkit.quant import AffineCodes, PackedLinear, round_to_nearest


def weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 0.02


def plain_rounding(w: torch.Tensor, group: int) -> torch.Tensor:
    """4 bits from the lowest to the highest value of each group, in float64."""
    out = []
    for part in w.double().split(group, dim=1):
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        step = (high - low) / 15
        out.append(((part - low) / step).round() * step + low)
    return torch.cat(out, 1)


@given(st.integers(1, 40), st.integers(1, 300), st.sampled_from([32, 64, 128]), st.sampled_from([4, 8]))
def test_every_shape_has_codes_in_range_and_scales_for_every_group(rows, columns, group, bits):
    codes = round_to_nearest(weight(rows, columns), bits, group)
    groups = -(-columns // group)
    assert codes.codes.shape == (rows, columns)
    assert codes.scales.shape == (groups, rows)
    assert codes.scales.dtype == torch.float16
    assert int(codes.codes.max()) < 2**bits
    assert codes.minima is None
    assert (codes.eighths is None) == (bits == 8)
    for row in (0, rows - 1):
        for column in (0, columns - 1):
            g, code = column // group, float(codes.codes[row, column])
            scale = float(codes.scales[g, row])
            zero = float(codes.eighths[g, row]) / 8 if codes.eighths is not None else 128
            assert float(codes.dequantize()[row, column]) == pytest.approx(scale * (code - zero), abs=1e-6)


@given(st.integers(1, 300), st.integers(0, 100))
def test_eight_bits_are_off_by_half_a_step_at_most(columns, seed):
    w = weight(7, columns, seed)
    codes = round_to_nearest(w, 8)
    step = codes.scales.float().t()[:, codes.group_of_column.long()]
    # A scale rounded down in float16 clips the largest value a little; the smallest scales are 2^-24 apart.
    clipped = 127 * (step * 2**-11).clamp(min=2**-25)
    assert ((codes.dequantize() - w).abs() <= step * 0.5 + clipped).all()


def test_four_bits_are_better_than_plain_rounding():
    w = weight(64, 1024)
    ours = (round_to_nearest(w, 4).dequantize() - w).norm()
    plain = (plain_rounding(w, 128) - w).norm()
    assert ours < 0.94 * plain


def test_four_bits_come_close_to_the_best_scale_and_minimum():
    """Against every pair on a fine grid, for a few groups."""
    w = weight(6, 128, seed=3).double()
    ours = (round_to_nearest(w.float(), 4).dequantize().double() - w).square().sum(1)
    total = 0.0
    for row in w:
        span = float(row.max() - row.min())
        best = 1e9
        for s in torch.linspace(0.6, 1.05, 60):
            for m in torch.linspace(0, 0.4, 40):
                step, low = float(s) * span / 15, float(row.min()) + float(m) * span
                codes = ((row - low) / step).round().clamp(0, 15)
                best = min(best, float((codes * step + low - row).square().sum()))
        total += best
    assert float(ours.sum()) < 1.15 * total


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("value", [0.0, 0.03125, -0.03125, 1e-9, 3000.0])
def test_constant_groups_stay_constant(bits, value):
    w = torch.full((3, 130), value)
    got = round_to_nearest(w, bits).dequantize()
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, w, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_group_of_one_sign_keeps_its_zero_in_range(sign):
    w = sign * (weight(9, 256).abs() + 0.5)
    codes = round_to_nearest(w, 4)
    assert int(codes.eighths.max()) <= 128
    step = float(w.abs().max()) / 15
    assert ((codes.dequantize() - w).abs() <= 0.57 * step).all()  # half a step, and a zero off by a sixteenth


def test_one_outlier_does_not_disturb_other_groups():
    w = weight(2, 256)
    w[0, 5] = 40.0
    clean = round_to_nearest(weight(2, 256), 4)
    codes = round_to_nearest(w, 4)
    assert torch.equal(codes.codes[:, 128:], clean.codes[:, 128:])
    assert torch.equal(codes.codes[1], clean.codes[1])
    assert abs(float(codes.dequantize()[0, 5]) - 40) < 1.5


def test_16_bit_weights_are_rounded_from_their_values():
    w = weight(5, 200).bfloat16()
    a, b = round_to_nearest(w, 4), round_to_nearest(w.float(), 4)
    assert torch.equal(a.codes, b.codes)
    assert torch.equal(a.scales, b.scales)


def test_what_float16_scales_cannot_hold_is_refused():
    with pytest.raises(UnsupportedError, match="too large"):
        round_to_nearest(torch.tensor([[1e9, -1e9]]), 8)
    with pytest.raises(UnsupportedError, match="3 bits"):
        round_to_nearest(weight(1, 8), 3)


def test_rows_stack_only_in_one_form():
    a, b = round_to_nearest(weight(3, 96), 4), round_to_nearest(weight(5, 96, 1), 4)
    both = AffineCodes.stack([a, b])
    assert torch.equal(both.dequantize(), torch.cat([a.dequantize(), b.dequantize()]))
    with pytest.raises(UnsupportedError):
        AffineCodes.stack([a, round_to_nearest(weight(3, 96), 8)])


@pytest.mark.skipif(not native.ready(), reason=native.explain())
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [96, 200, 896, 1025])
def test_packing_keeps_the_rounded_values(bits, columns):
    codes = round_to_nearest(weight(33, columns), bits)
    packed = PackedLinear.from_affine(codes, torch.ones(33))
    assert torch.equal(packed.dequantize(), codes.dequantize())
    x = torch.randn(4, columns, generator=torch.Generator().manual_seed(1))
    wanted = x.double() @ codes.dequantize(torch.float64).T + 1
    assert (packed(x) - wanted).norm() < 0.01 * wanted.norm()
