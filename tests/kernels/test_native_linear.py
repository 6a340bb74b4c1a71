"""Packed linears against the dequantized float64 product, on every instruction set."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native, reference
from qwenkit.kernels.native import AffineWeight, Bf16Weight

# The fixture only sets the instruction set; sharing it between examples is what we want.
relaxed = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
BATCHES = (1, 2, 3, 5, 16, 17, 33, 200)


@dataclass
class Case:
    """A random affine weight, its packed form, its float64 value and a bias."""

    weight: AffineWeight
    value: Tensor  # float64 [out, in]
    bias: Tensor | None
    group_of_column: Tensor


def make(
    rows: int,
    columns: int,
    bits: int,
    group: int | None,
    zeros: str,
    *,
    act_order: bool,
    bias: bool,
    seed: int,
) -> Case:
    g = torch.Generator().manual_seed(seed)
    size = group or columns
    groups = -(-columns // size)
    group_of_column = torch.arange(columns) // size
    if act_order:
        group_of_column = group_of_column[torch.randperm(columns, generator=g)]
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=g, dtype=torch.uint8)
    scales = (torch.rand(groups, rows, generator=g) * 0.02 + 0.001).half()
    points = minima = eighths = None
    if zeros == "points":
        points = torch.randint(0, 1 << bits, (groups, rows), generator=g, dtype=torch.uint8)
    if zeros == "eighths":
        eighths = torch.randint(0, 129, (groups, rows), generator=g, dtype=torch.uint8)
    if zeros == "minima":
        minima = (torch.randn(groups, rows, generator=g) * 0.1).half()
    b = torch.randn(rows, generator=g) if bias else None
    scale = scales.double()[group_of_column].t()
    if minima is not None:
        value = scale * codes.double() + minima.double()[group_of_column].t()
    elif eighths is not None:
        value = scale * (codes.double() - eighths.double()[group_of_column].t() / 8)
    elif points is not None:
        value = scale * (codes.double() - points.double()[group_of_column].t())
        # The reference and this restatement agree: the oracle is not of our own making.
        plain = reference.affine_dequantize(codes, scales, points, group_of_column, torch.float32)
        assert torch.allclose(plain.double(), value, rtol=1e-6, atol=0)
    else:
        value = scale * (codes.double() - (1 << (bits - 1)))
    weight = AffineWeight.pack(
        codes,
        scales,
        bits=bits,
        group_of_column=group_of_column,
        zeros=points,
        minima=minima,
        eighths=eighths,
        bias=b,
    )
    return Case(weight, value, b, group_of_column)


def product(case: Case, x: Tensor) -> Tensor:
    y = x.double() @ case.value.t()
    return y if case.bias is None else y + case.bias.double()


def quantization_bound(case: Case, x: Tensor) -> Tensor:
    """The most rounding x to int8 can move each output: half a step a column, two packed groups a step."""
    order = torch.arange(x.shape[1]) if case.weight.gather is None else case.weight.gather.long()
    slab = 2 * case.weight.shape.group
    slab_of_column = torch.empty(x.shape[1], dtype=torch.long)
    slab_of_column[order[order >= 0]] = (torch.arange(order.numel()) // slab)[order >= 0]
    step = torch.zeros(x.shape[0], order.numel() // slab + 1, dtype=torch.float64)
    step.scatter_reduce_(1, slab_of_column.expand(x.shape), x.double().abs(), "amax")
    half = step[:, slab_of_column] / 254
    return half @ case.value.abs().t()


shapes = st.tuples(st.integers(1, 70), st.integers(1, 400))
formats = st.sampled_from(
    [
        (bits, zeros)
        for bits in (4, 8)
        for zeros in ("none", "points", "eighths", "minima")
        if bits == 4 or zeros in ("none", "points")
    ]
)
sizes = st.sampled_from([32, 64, 128, None])


@relaxed
@given(
    shape=shapes,
    form=formats,
    group=sizes,
    act_order=st.booleans(),
    bias=st.booleans(),
    count=st.sampled_from(BATCHES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_int8_activations_stay_within_their_rounding(
    isa, shape, form, group, act_order, bias, count, dtype, seed
):
    case = make(*shape, *form[:1], group, form[1], act_order=act_order, bias=bias, seed=seed)
    x = torch.randn(count, shape[1], generator=torch.Generator().manual_seed(seed)).to(dtype)
    y = case.weight.multiply(x, out_dtype=torch.float32)
    want = product(case, x)
    slack = 1e-5 * (x.double().abs() @ case.value.abs().t()) + 1e-6
    assert ((y.double() - want).abs() <= quantization_bound(case, x) * 1.001 + slack).all()


@relaxed
@given(
    shape=shapes,
    form=formats,
    group=sizes,
    act_order=st.booleans(),
    bias=st.booleans(),
    count=st.sampled_from(BATCHES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_16_bit_activations_are_exact_products(isa, shape, form, group, act_order, bias, count, dtype, seed):
    case = make(*shape, *form[:1], group, form[1], act_order=act_order, bias=bias, seed=seed)
    x = torch.randn(count, shape[1], generator=torch.Generator().manual_seed(seed)).to(dtype)
    y = case.weight.multiply(x, "16bit", torch.float32)
    # Float32 sums of exact products: error relative to the sum of magnitudes. With zero points the codes
    # are larger than the weights, so magnitudes count scale * code.
    magnitude = x.double().abs() @ case.value.abs().t() + (case.bias.abs() if case.bias is not None else 0)
    assert ((y.double() - product(case, x)).abs() <= 3e-6 * magnitude + 1e-6).all()


@pytest.mark.parametrize("activations", ["int8", "16bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("bits", "zeros"), [(4, "none"), (4, "points"), (4, "eighths"), (4, "minima"), (8, "none"), (8, "points")]
)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_row_gives_the_same_bits_alone_and_in_a_batch(isa, bits, zeros, group, activations, dtype):
    case = make(53, 5 * group + 20, bits, group, zeros, act_order=False, bias=True, seed=7)
    x = torch.randn(67, 5 * group + 20, generator=torch.Generator().manual_seed(8)).to(dtype)
    alone = torch.cat([case.weight.multiply(x[i : i + 1], activations) for i in range(67)])
    for count in (2, 3, 8, 9, 16, 17, 32, 33, 67):
        assert torch.equal(case.weight.multiply(x[:count], activations), alone[:count])
    assert not torch.equal(alone[0], alone[1])


@relaxed
@given(
    shape=shapes,
    bias=st.booleans(),
    count=st.sampled_from(BATCHES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_bf16_linear(isa, shape, bias, count, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(*shape, generator=g).bfloat16()
    b = torch.randn(shape[0], generator=g) if bias else None
    x = torch.randn(count, shape[1], generator=g).to(dtype)
    y = Bf16Weight.pack(w, b).multiply(x, torch.float32)
    rounded = x.bfloat16().double()  # x is rounded to bfloat16 by definition
    want = rounded @ w.double().t() + (0 if b is None else b.double())
    magnitude = rounded.abs() @ w.double().abs().t() + (0 if b is None else b.abs())
    assert ((y.double() - want).abs() <= 3e-6 * magnitude + 1e-6).all()


def test_bf16_row_gives_the_same_bits_alone_and_in_a_batch(isa):
    g = torch.Generator().manual_seed(3)
    weight = Bf16Weight.pack(torch.randn(75, 700, generator=g).bfloat16())
    x = torch.randn(67, 700, generator=g).bfloat16()
    alone = torch.cat([weight.multiply(x[i : i + 1], torch.float32) for i in range(67)])
    for count in (2, 3, 8, 9, 16, 17, 33, 67):
        assert torch.equal(weight.multiply(x[:count], torch.float32), alone[:count])


def test_instruction_sets_agree_on_int8(monkeypatch):
    """Integers are exact and the order of float sums is one: AVX-512 and AMX give the same bits."""
    if not {"avx512", "amx"} <= set(native.available_isas()):
        pytest.skip("this machine lacks AVX-512 or AMX, or the kernels are not built")
    case = make(77, 500, 4, 128, "points", act_order=True, bias=True, seed=1)
    x = torch.randn(50, 500)
    before, results = native.isa(), []
    for name in ("avx512", "amx"):
        native.set_isa(name)
        results.append(case.weight.multiply(x))
    native.set_isa(before)
    assert torch.equal(*results)


def test_not_a_number_is_not_lost(isa):
    case = make(40, 256, 4, 128, "none", act_order=False, bias=False, seed=2)
    for bad in (float("nan"), float("inf")):
        for count in (1, 40):
            x = torch.randn(count, 256)
            x[0, 5] = bad
            y = case.weight.multiply(x)
            assert not y[0].isfinite().any()
            assert y[1:].isfinite().all()


@pytest.mark.parametrize(("bits", "zeros"), [(4, "minima"), (8, "points")])
def test_not_a_number_stays_in_its_row(isa, bits, zeros):
    """An odd number of groups: tiles take two at a time, and what lies after the last is not a partner."""
    case = make(40, 3 * 128, bits, 128, zeros, act_order=False, bias=False, seed=2)
    x = torch.randn(70, 3 * 128)
    x[32, 0] = x[69, 383] = float("nan")
    for activations in ("int8", "16bit"):
        y = case.weight.multiply(x, activations)
        assert torch.equal(y.isfinite().all(1).logical_not().nonzero().flatten(), torch.tensor([32, 69]))


def test_zero_and_tiny_rows(isa):
    case = make(40, 256, 4, 128, "points", act_order=False, bias=False, seed=2)
    for value in (0.0, 1e-42, 1e-38):
        for count in (1, 20):
            y = case.weight.multiply(torch.full((count, 256), value))
            assert (y.abs() < 1e-34).all()


def test_large_batch_in_pieces(isa):
    """More rows than one pass of the tiles takes."""
    case = make(20, 300, 4, 64, "points", act_order=True, bias=True, seed=4)
    x = torch.randn(1100, 300)
    y = case.weight.multiply(x)
    assert torch.equal(y[1050:1060], case.weight.multiply(x[1050:1060].clone()))
    assert (y.double() - product(case, x)).norm() < 0.01 * product(case, x).norm()


def test_uneven_groups_and_empty_batch(isa):
    group_of_column = torch.tensor([0] * 10 + [2] * 70 + [1] * 40 + [0] * 5)
    codes = torch.randint(0, 16, (33, 125), dtype=torch.uint8)
    scales = torch.rand(3, 33).half()
    weight = AffineWeight.pack(codes, scales, bits=4, group_of_column=group_of_column)
    value = scales.double()[group_of_column].t() * (codes.double() - 8)
    x = torch.randn(9, 125)
    y = weight.multiply(x, "16bit")
    assert torch.allclose(y.double(), x.double() @ value.t(), rtol=1e-4, atol=1e-4)
    assert weight.multiply(torch.empty(0, 125)).shape == (0, 33)
    assert weight.multiply(x.view(3, 3, 125), "16bit").shape == (3, 3, 33)


def test_bad_input_is_refused(isa):
    case = make(8, 64, 4, 32, "none", act_order=False, bias=False, seed=0)
    with pytest.raises(UnsupportedError, match="65 columns"):
        case.weight.multiply(torch.randn(1, 65))
    with pytest.raises(UnsupportedError, match="float64"):
        case.weight.multiply(torch.randn(1, 64, dtype=torch.float64))
    groups = torch.zeros(4, dtype=torch.long)
    with pytest.raises(UnsupportedError, match="float16 cannot"):
        AffineWeight.pack(
            torch.zeros(2, 4, dtype=torch.uint8), torch.full((1, 2), 0.1), bits=4, group_of_column=groups
        )
    codes = torch.full((2, 4), 16, dtype=torch.uint8)
    with pytest.raises(UnsupportedError, match="4 bits"):
        AffineWeight.pack(codes, torch.ones(1, 2), bits=4, group_of_column=groups)
    with pytest.raises(UnsupportedError, match="does not fit"):
        AffineWeight(case.weight.shape, torch.zeros(3, dtype=torch.uint8), None, None)
