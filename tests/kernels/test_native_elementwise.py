"""Norm, rotary and gate against the plain torch operators, on every instruction set."""

from __future__ import annotations

import pytest
import torch

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def close(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Within two roundings to the type (each may fall the other way), or of float32's noise."""
    bits = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[want.dtype] * 2
    return bool(((got.float() - want.float()).abs() <= bits * want.float().abs() + 1e-6).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 3, 77), (1, 5), (3, 2048), (40, 2049)])
def test_rms_norm(isa, dtype, shape):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g).mul(3).to(dtype)
    residual = torch.randn(shape, generator=g).to(dtype)
    weight = torch.rand(shape[-1], generator=g).add(0.5).to(dtype)
    assert close(native.rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6))
    total, normed = native.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, x + residual)
    assert close(normed, reference.rms_norm(x + residual, weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "r", "tables"), [(128, 128, 1), (64, 32, 2), (20, 10, 2), (6, 6, 1)])
def test_rotary(isa, dtype, d, r, tables):
    g = torch.Generator().manual_seed(1)
    fused = torch.randn(2, 7, 9, d, generator=g).to(dtype)
    q = fused[:, :, 2:5]  # a slice of fused heads
    angles = torch.randn(tables, 7, r, generator=g)
    cos, sin = angles.cos(), angles.sin()
    assert close(native.apply_rotary(q, cos, sin), reference.apply_rotary(q, cos, sin))
    turned = q.transpose(1, 2).contiguous().transpose(1, 2)
    assert close(native.apply_rotary(turned, cos, sin), reference.apply_rotary(q, cos, sin))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 64), (3, 11), (2, 40, 1100), (5,)])
def test_silu_gate(isa, dtype, shape):
    g = torch.Generator().manual_seed(2)
    both = torch.randn(*shape[:-1], 2 * shape[-1], generator=g).mul(4).to(dtype)
    up, gate = both.chunk(2, dim=-1)
    got = native.silu_gate(up, gate)
    want = reference.silu_gate(up, gate)
    assert got.shape == want.shape
    assert close(got, want)
    extremes = torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4]).to(dtype)
    ones = torch.ones_like(extremes)
    assert close(native.silu_gate(ones, extremes), reference.silu_gate(ones, extremes))


def test_silu_of_float32_of_every_size(isa):
    powers = torch.logspace(-38, 38.5, 4001, dtype=torch.float64)
    x = torch.cat([powers, -powers, torch.linspace(-120, 120, 4001)]).float()
    got = native.silu_gate(torch.ones_like(x), x).double()
    want = x.double() * torch.sigmoid(x.double())
    # 3e-37: where e^-x is more than float32 holds, nothing is left.
    assert ((got - want).abs() <= want.abs() * 1e-6 + 3e-37).all()
    assert (got[x < -100] == 0).all()
    not_finite = torch.tensor([float("nan"), float("-inf")])
    assert native.silu_gate(torch.ones_like(not_finite), not_finite).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_silu_of_every_16_bit_number(isa, dtype):
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    x = x[x.isfinite()]
    got = native.silu_gate(torch.ones_like(x), x).double()
    want = x.double() * torch.sigmoid(x.double())
    assert ((got - want).abs() <= want.abs() * torch.finfo(dtype).eps * 0.51 + 1e-7).all()
    not_finite = torch.tensor([float("nan"), float("-inf")], dtype=dtype)
    assert native.silu_gate(torch.ones_like(not_finite), not_finite).isnan().all()


def test_shapes_that_do_not_fit_are_refused(isa):
    x = torch.randn(2, 8)
    with pytest.raises(UnsupportedError, match="norm's weight"):
        native.rms_norm(x, torch.ones(9), 1e-6)
    with pytest.raises(UnsupportedError, match="Angles"):
        native.apply_rotary(torch.randn(1, 2, 1, 8), torch.ones(1, 3, 8), torch.ones(1, 3, 8))
    with pytest.raises(UnsupportedError, match="gate"):
        native.silu_gate(x, torch.randn(2, 9))
