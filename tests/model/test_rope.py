"""NTK, angles and LogN against values and formulas restated here in float64."""

from __future__ import annotations

import math

import pytest
import torch

from qwenkit.kernels import apply_rotary
from qwenkit.model.rope import logn_factors, ntk_alpha, rotary_table


@pytest.mark.parametrize(
    ("length", "trained", "alpha"),
    [(1, 2048, 1), (2048, 2048, 1), (2049, 2048, 3), (4096, 2048, 3), (4097, 2048, 7), (8193, 2048, 15),
     (16385, 2048, 31), (8193, 8192, 3), (16385, 8192, 7), (32769, 8192, 15)],
)  # fmt: skip
def test_ntk_alpha_has_the_recorded_values(length, trained, alpha):
    assert ntk_alpha(length, trained) == alpha


@pytest.mark.parametrize("alpha", [1.0, 3.0, 7.0])
def test_rotation_is_multiplication_by_a_unit_complex_number(alpha):
    """Pair (j, j + d/2) as a complex number times exp(i p base'^(-2j/d)), in float64."""
    d, base = 16, 10000.0
    positions = torch.tensor([[0, 1, 5, 77], [3, 4, 1000, 2]])
    x = torch.randn(2, 4, 3, d)
    ours = apply_rotary(x, *rotary_table(positions, d, base, (alpha,)))
    stretched = base * alpha ** (d / (d - 2))
    speed = torch.tensor([stretched ** (-2 * j / d) for j in range(d // 2)], dtype=torch.float64)
    turn = torch.polar(torch.ones(2, 4, 1, d // 2, dtype=torch.float64), positions[..., None, None] * speed)
    z = torch.complex(x[..., : d // 2].double(), x[..., d // 2 :].double()) * turn
    expected = torch.cat((z.real, z.imag), -1).float()
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=1e-4)


def test_each_row_has_its_own_alpha():
    positions = torch.arange(5).expand(2, 5)
    both = rotary_table(positions, 8, 1e4, (1.0, 3.0))
    for row, alpha in enumerate((1.0, 3.0)):
        alone = rotary_table(positions[:1], 8, 1e4, (alpha,))
        assert torch.equal(both[0][row], alone[0][0])
        assert torch.equal(both[1][row], alone[1][0])


def test_channels_past_rotary_dim_pass_through():
    x = torch.randn(1, 3, 2, 16, dtype=torch.bfloat16)
    out = apply_rotary(x, *rotary_table(torch.arange(3)[None], 8, 1e4, (1.0,)))
    assert torch.equal(out[..., 8:], x[..., 8:])
    assert not torch.equal(out[:, 1:, :, :8], x[:, 1:, :, :8])
    assert out.dtype == torch.bfloat16


def test_logn_is_one_up_to_the_training_length_and_the_logarithm_after():
    positions = torch.arange(0, 200)[None]
    factors = logn_factors(positions, 32)[0]
    expected = [math.log(i) / math.log(32) if i > 32 else 1.0 for i in range(1, 201)]
    torch.testing.assert_close(factors, torch.tensor(expected), atol=1e-6, rtol=1e-6)
