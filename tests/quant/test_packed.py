"""Packed layers as modules: values kept, copies and state dicts alive, gradients refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native
from qwenkit.quant.packed import PackedBf16Linear, PackedLinear

pytestmark = pytest.mark.skipif(
    not native.built(), reason="the native kernels are not built in this installation"
)


def layer(
    bits: int = 4, zeros: str = "points", *, act_order: bool = False
) -> tuple[PackedLinear, torch.Tensor]:
    g = torch.Generator().manual_seed(bits)
    group_of_column = torch.arange(200) // 64
    if act_order:
        group_of_column = group_of_column[torch.randperm(200, generator=g)]
    codes = torch.randint(0, 1 << bits, (37, 200), generator=g, dtype=torch.uint8)
    scales = torch.rand(4, 37, generator=g).half()
    points = (
        torch.randint(0, 1 << bits, (4, 37), generator=g, dtype=torch.uint8) if zeros == "points" else None
    )
    minima = torch.randn(4, 37, generator=g).half() if zeros == "minima" else None
    eighths = torch.randint(0, 129, (4, 37), generator=g, dtype=torch.uint8) if zeros == "eighths" else None
    scale = scales.float()[group_of_column].t()
    if minima is not None:
        value = scale * codes.float() + minima.float()[group_of_column].t()
    elif eighths is not None:
        value = scale * (codes.float() - eighths.float()[group_of_column].t() / 8)
    else:
        zero = torch.tensor(float(1 << (bits - 1))) if points is None else points.float()[group_of_column].t()
        value = scale * (codes.float() - zero)
    packed = PackedLinear.from_codes(
        codes,
        scales,
        bits=bits,
        group_of_column=group_of_column,
        zeros=points,
        minima=minima,
        eighths=eighths,
        bias=torch.randn(37, generator=g),
    )
    return packed, value


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    ("bits", "zeros"), [(4, "none"), (4, "points"), (4, "eighths"), (4, "minima"), (8, "none"), (8, "points")]
)
def test_packing_keeps_every_value(bits, zeros, act_order):
    packed, value = layer(bits, zeros, act_order=act_order)
    assert torch.equal(packed.dequantize(), value)


def test_reference_path_is_the_plain_product():
    packed, value = layer()
    x = torch.randn(5, 200)
    before = native.isa()
    native.set_isa("reference")
    try:
        assert torch.allclose(packed(x), nn.functional.linear(x, value, packed.bias), atol=1e-3)
    finally:
        native.set_isa(before)


@pytest.mark.skipif(not native.ready(), reason="no native instruction set on this machine")
def test_copies_and_state_dicts():
    packed, value = layer(act_order=True)
    x = torch.randn(5, 200)
    y = packed(x)
    assert (y - nn.functional.linear(x, value, packed.bias)).norm() < 0.01 * y.norm()
    assert torch.equal(copy.deepcopy(packed)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(packed))(x), y)
    empty = PackedLinear(
        packed.shape,
        torch.zeros_like(packed.packed),
        torch.zeros_like(packed.gather),
        torch.zeros_like(packed.bias),
    )
    assert not torch.equal(empty(x), y)
    empty.load_state_dict(packed.state_dict())
    assert torch.equal(empty(x), y)


@pytest.mark.skipif(not native.ready(), reason="no native instruction set on this machine")
def test_bf16_layer():
    linear = nn.Linear(100, 45).bfloat16()
    packed = PackedBf16Linear.from_linear(linear)
    assert torch.equal(packed.dequantize(), linear.weight)
    x = torch.randn(3, 100).bfloat16()
    assert (packed(x).float() - linear(x).float()).norm() < 0.01 * linear(x).float().norm()
    assert torch.equal(copy.deepcopy(packed)(x), packed(x))


def test_gradients_are_refused():
    packed, _ = layer()
    with pytest.raises(UnsupportedError, match="backward"):
        packed(torch.randn(1, 200, requires_grad=True))
