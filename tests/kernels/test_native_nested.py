"""Nested weights against the float64 product, on every instruction set."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native
from qwenkit.kernels.native import AffineWeight

relaxed = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass
class Case:
    """A random nested weight, its packed form, its float64 value and a bias."""

    weight: AffineWeight
    value: Tensor  # float64 [out, in]
    bias: Tensor | None


def make(rows: int, columns: int, bits: int, inner: int, *, minima: bool, bias: bool, seed: int) -> Case:
    g = torch.Generator().manual_seed(seed)
    groups = -(-columns // 256)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=g, dtype=torch.uint8)
    scales = (torch.randn(groups, rows, generator=g) * 1e-3).half()
    form = (groups, 256 // inner, rows)
    # Every integer scale a file can hold: six unsigned bits beside minima, else eight signed ones.
    first, last = (0, 64) if minima else (-128, 128)
    inner_scales = torch.randint(first, last, form, generator=g).to(torch.int8)
    low = (torch.randn(groups, rows, generator=g) * 1e-2).half() if minima else None
    factors = torch.randint(0, 64, form, generator=g, dtype=torch.uint8) if minima else None
    b = torch.randn(rows, generator=g) if bias else None
    weight = AffineWeight.pack_nested(
        codes, scales, inner_scales, bits=bits, minima=low, inner_minima=factors, bias=b
    )
    value = torch.empty(rows, columns, dtype=torch.float64)
    for k in range(columns):
        step = scales[k // 256].double() * inner_scales[k // 256, k % 256 // inner].double()
        if low is None or factors is None:
            value[:, k] = step * (codes[:, k].double() - (1 << (bits - 1)))
        else:
            minimum = low[k // 256].double() * factors[k // 256, k % 256 // inner].double()
            value[:, k] = step * codes[:, k].double() + minimum
    return Case(weight, value, b)


def rounded(x: Tensor) -> Tensor:
    """x as the kernels see it: 8 bits, a scale per row and 256 columns."""
    columns = x.shape[1]
    padded = torch.nn.functional.pad(x.float(), (0, -columns % 256)).view(x.shape[0], -1, 256)
    top = padded.abs().amax(-1, keepdim=True)
    codes = torch.round(padded * torch.where(top > 0, torch.full_like(top, 127).div(top), 0))
    return (codes.double() * (top / 127).double()).view(x.shape[0], -1)[:, :columns]


forms = st.tuples(st.sampled_from([4, 6]), st.sampled_from([16, 32]), st.booleans())


@relaxed
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 3).map(lambda n: 256 * n) | st.integers(1, 700)),
    form=forms,
    bias=st.booleans(),
    count=st.sampled_from([1, 2, 3, 4, 5, 16, 17, 33, 200]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_products_are_those_of_the_rounded_inputs(isa, shape, form, bias, count, dtype, seed):
    case = make(*shape, *form[:2], minima=form[2], bias=bias, seed=seed)
    x = torch.randn(count, shape[1], generator=torch.Generator().manual_seed(seed)).to(dtype)
    y = case.weight.multiply(x, out_dtype=torch.float32)
    seen = rounded(x)
    want = seen @ case.value.t() + (0 if case.bias is None else case.bias.double())
    # Sums of a group are integers: only scaling and adding up groups rounds.
    slack = 1e-6 * (seen.abs() @ case.value.abs().t() + want.abs()) + 1e-6
    assert ((y.double() - want).abs() <= slack).all()


@relaxed
@given(
    form=forms, count=st.sampled_from([2, 7, 33, 70, 600]), rows=st.integers(1, 70), seed=st.integers(0, 999)
)
def test_a_row_gives_the_same_bits_alone_and_in_any_batch(isa, form, count, rows, seed):
    case = make(rows, 512, *form[:2], minima=form[2], bias=True, seed=seed)
    x = torch.randn(count, 512, generator=torch.Generator().manual_seed(seed)).bfloat16()
    together = case.weight.multiply(x, out_dtype=torch.float32)
    for i in {0, count // 2, count - 1}:
        assert torch.equal(together[i : i + 1], case.weight.multiply(x[i : i + 1], out_dtype=torch.float32))


@pytest.mark.parametrize("columns", [256, 300, 768])
@pytest.mark.parametrize("form", [(4, 32, True), (6, 16, False)])
def test_few_rows_have_those_bits_where_a_thread_has_many_panels(isa, form, columns):
    case = make(1000, columns, *form[:2], minima=form[2], bias=True, seed=1)
    x = torch.randn(40, columns, generator=torch.Generator().manual_seed(2)).bfloat16()
    alone = torch.cat([case.weight.multiply(row[None], out_dtype=torch.float32) for row in x])
    for count in range(2, 41):
        assert torch.equal(case.weight.multiply(x[:count], out_dtype=torch.float32), alone[:count]), count


@pytest.mark.parametrize("form", [(4, 32, True), (6, 16, False), (6, 32, True), (4, 16, False)])
def test_instruction_sets_agree_to_the_bit(form):
    case = make(37, 768, *form[:2], minima=form[2], bias=False, seed=1)
    x = torch.randn(40, 768, generator=torch.Generator().manual_seed(2))
    seen = []
    for name in native.available_isas()[1:]:
        native.set_isa(name)
        seen.append(case.weight.multiply(x))
    native.set_isa(None)
    assert all(torch.equal(seen[0], other) for other in seen)


def test_a_row_with_a_nan_gives_nan_and_spoils_no_other(isa):
    case = make(20, 512, 4, 32, minima=True, bias=False, seed=3)
    x = torch.randn(40, 512)
    clean = case.weight.multiply(x)
    x[7, 300] = torch.nan
    y = case.weight.multiply(x)
    others = torch.arange(40) != 7
    assert y[7].isnan().all()
    assert torch.equal(y[others], clean[others])


def test_what_does_not_fit_is_refused():
    codes = torch.zeros(4, 256, dtype=torch.uint8)
    scales, inner = torch.ones(1, 4).half(), torch.ones(1, 8, 4, dtype=torch.int8)
    low, factors = torch.ones(1, 4).half(), torch.full((1, 8, 4), 64, dtype=torch.uint8)
    with pytest.raises(UnsupportedError, match="4 or 6 bits, not 5"):
        AffineWeight.pack_nested(codes, scales, inner, bits=5)
    with pytest.raises(UnsupportedError, match="A code of 16"):
        AffineWeight.pack_nested(codes + 16, scales, inner, bits=4)
    with pytest.raises(UnsupportedError, match="inner minimum of 64"):
        AffineWeight.pack_nested(codes, scales, inner, bits=4, minima=low, inner_minima=factors)
    with pytest.raises(UnsupportedError, match="factors"):
        AffineWeight.pack_nested(codes, scales, inner, bits=4, minima=low)
    with pytest.raises(UnsupportedError, match="16 or 32"):
        AffineWeight.pack_nested(codes, scales, inner[:, :4], bits=4)
    with pytest.raises(UnsupportedError, match=r"inner_scales have shape \(1, 8, 3\)"):
        AffineWeight.pack_nested(codes, scales, inner[..., :3], bits=4)
    weight = AffineWeight.pack_nested(codes, scales, inner, bits=4)
    with pytest.raises(UnsupportedError, match="rounded to 8 bits"):
        weight.multiply(torch.zeros(1, 256), "16bit")
