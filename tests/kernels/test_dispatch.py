"""Native kernels serve inference, the reference everything else; both say the same."""

from __future__ import annotations

import pytest
import torch

from qwenkit import kernels
from qwenkit.kernels import native, reference, runs_native

needs_native = pytest.mark.skipif(not native.built(), reason="the native kernels were not built")


@needs_native
def test_gradients_other_dtypes_and_devices_take_the_reference():
    x = torch.randn(2, 3)
    assert not runs_native(x)  # gradients are on
    with torch.no_grad():
        assert runs_native(x, x)
        assert not runs_native(x, x.bfloat16())
        assert not runs_native(x.double())
        assert not runs_native(x.to("meta"))


def test_training_through_the_dispatched_operators_has_gradients():
    x, w = torch.randn(2, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    kernels.silu_gate(kernels.rms_norm(x, w, 1e-6), x).sum().backward()
    assert x.grad is not None
    assert w.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_dispatched_operators_equal_the_reference(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 16, generator=generator).to(dtype)
    w = torch.randn(16, generator=generator).to(dtype)
    angles = torch.randn(2, 5, 16, generator=generator)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 1e-2}
    for ours, theirs in (
        (kernels.rms_norm(x, w, 1e-6), reference.rms_norm(x, w, 1e-6)),
        (kernels.silu_gate(x, x.flip(0)), reference.silu_gate(x, x.flip(0))),
        (
            kernels.apply_rotary(x, angles.cos(), angles.sin()),
            reference.apply_rotary(x, angles.cos(), angles.sin()),
        ),
    ):
        torch.testing.assert_close(ours, theirs, **tolerance)
