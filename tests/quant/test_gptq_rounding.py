"""GPTQ against the original's quantizer: recorded results of AutoGPTQ on one layer, and properties."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from qwenkit.core import UnsupportedError
from qwenkit.quant.gptq_rounding import RoundedWeight, Rounding, output_error, round_to_grid, round_weight

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "gptq_layer.safetensors")
X = GOLDEN["calibration"].reshape(-1, 128)
HESSIAN = X.t() @ X / len(X)


def lost(rounded: torch.Tensor) -> float:
    """Output error on the calibration data, computed the long way."""
    want = X.double() @ GOLDEN["weight"].double().t()
    return float((X.double() @ rounded.double().t() - want).square().sum() / want.square().sum())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", [32, 128, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_error_is_no_larger_than_autogptq_s(bits, group, symmetric, act_order):
    ours = round_weight(GOLDEN["weight"], HESSIAN, Rounding(bits, group, symmetric, act_order, damping=0.01))
    case = f"b{bits}_g{group}_{'sym' if symmetric else 'asym'}_{'act' if act_order else 'noact'}"
    theirs = lost(GOLDEN[f"{case}.dequantized"])
    assert lost(ours.dequantize()) <= theirs
    assert ours.error == pytest.approx(lost(ours.dequantize()), rel=1e-3)
    if symmetric:
        assert (ours.zeros == 1 << (bits - 1)).all()


def test_without_clipping_the_codes_are_nearly_all_autogptq_s():
    ours = round_weight(GOLDEN["weight"], HESSIAN, Rounding(4, -1, act_order=True, damping=0.01, clip=False))
    codes = GOLDEN["b4_g-1_sym_act.dequantized"] / GOLDEN["b4_g-1_sym_act.scales"].t() + 8
    assert (ours.codes == codes.round()).float().mean() > 0.97


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 20),
    groups=st.integers(1, 6),
    group=st.sampled_from([16, 32, 100]),
    bits=st.sampled_from([4, 8]),
    act_order=st.booleans(),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_what_it_promises_of_any_layer(rows, groups, group, bits, act_order, symmetric, seed):
    g = torch.Generator().manual_seed(seed)
    columns = groups * group
    mix = torch.randn(columns, columns, generator=g) / columns**0.5
    x = torch.randn(4 * columns, columns, generator=g) @ (mix + 0.3 * torch.eye(columns))
    weight = torch.randn(rows, columns, generator=g)
    hessian = x.t() @ x / len(x)
    ours = round_weight(weight, hessian, Rounding(bits, group, symmetric, act_order))
    assert ours.codes.shape == weight.shape
    assert int(ours.codes.max()) < 1 << bits
    assert ours.scales.dtype == torch.float16
    assert torch.equal(torch.bincount(ours.group_of_column), torch.full((groups,), group))
    if not act_order:
        assert torch.equal(ours.group_of_column.long(), torch.arange(columns) // group)
    want = x.double() @ weight.double().t()
    error = (x.double() @ ours.dequantize().double().t() - want).square().sum() / want.square().sum()
    assert ours.error == pytest.approx(float(error), rel=1e-2)
    if weight.numel() >= 1000:  # of a few numbers, either may be luckier
        assert error < nearest_error(weight, hessian, ours) * 1.02


def nearest_error(weight: torch.Tensor, hessian: torch.Tensor, ours: RoundedWeight) -> float:
    """Of rounding each weight by itself, on the same scales and zeros."""
    group = ours.group_of_column.long()
    scale, zero = ours.scales.float().t()[:, group], ours.zeros.float().t()[:, group]
    top = 15 if int(ours.codes.max()) < 16 and int(ours.zeros.max()) < 16 else 255
    code = ((weight / scale).round() + zero).clamp(0, top)
    return output_error(weight, (code - zero) * scale, hessian)


def test_inputs_that_never_occur_are_rounded_to_nearest():
    hessian = HESSIAN.clone()
    hessian[:, 7] = hessian[7] = 0
    ours = round_weight(GOLDEN["weight"], hessian, Rounding(4, 32))
    off = (ours.dequantize()[:, 7] - GOLDEN["weight"][:, 7]).abs()
    assert (off <= ours.scales[0].float() * 0.5001).float().mean() > 0.9  # the rest is clipped
    nothing = round_weight(GOLDEN["weight"], torch.zeros(128, 128), Rounding(8, 32))
    assert nothing.error == 0
    assert (nothing.dequantize() - GOLDEN["weight"]).abs().max() < 0.01


def test_damping_rises_until_the_hessian_can_be_factored():
    line = torch.randn(1, 128)
    ours = round_weight(GOLDEN["weight"], line.t() @ line, Rounding(4, 32, damping=1e-8))
    assert ours.damping > 1e-8
    with pytest.raises(UnsupportedError, match="not positive definite"):
        round_weight(GOLDEN["weight"], -torch.eye(128), Rounding(4, 32))


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_are_never_0_which_readers_of_the_format_disagree_on(bits, sign):
    weight = sign * GOLDEN["weight"].abs()
    for ours in (
        round_weight(weight, HESSIAN, Rounding(bits, 32, symmetric=False)),
        round_to_grid(weight, Rounding(bits, 32, symmetric=False)),
    ):
        assert int(ours.zeros.min()) >= 1
        assert ours.error < 30 * 0.25**bits  # as fine as steps of that width are


def test_rounding_to_nearest_is_within_half_a_step():
    rounding = Rounding(4, 32, symmetric=False, clip=False)
    ours = round_to_grid(GOLDEN["weight"], rounding)
    off = (ours.dequantize() - GOLDEN["weight"]).abs()
    step = ours.scales.float().t()[:, ours.group_of_column.long()]
    assert (off <= step).all()
    assert (off <= 0.51 * step).float().mean() > 0.98  # the ends move with the zero
    assert lost(round_weight(GOLDEN["weight"], HESSIAN, rounding).dequantize()) < lost(ours.dequantize())


@pytest.mark.parametrize(
    ("rounding", "message"),
    [(Rounding(3), "3 bits"), (Rounding(4, 48), "48 do not divide the 128"), (Rounding(4, 0), "Groups of 0")],
)
def test_wrong_settings_are_refused(rounding, message):
    with pytest.raises(UnsupportedError, match=message):
        round_weight(GOLDEN["weight"], HESSIAN, rounding)


def test_numbers_that_are_none_are_refused():
    spoilt = HESSIAN.clone()
    spoilt[3, 4] = torch.nan
    with pytest.raises(UnsupportedError, match="second moments"):
        round_weight(GOLDEN["weight"], spoilt, Rounding())
    with pytest.raises(UnsupportedError, match="The weight"):
        round_weight(GOLDEN["weight"] / 0, HESSIAN, Rounding())
    with pytest.raises(UnsupportedError, match="float16"):
        round_weight(GOLDEN["weight"] * 1e8, HESSIAN, Rounding())
