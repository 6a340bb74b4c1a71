"""Affine weights against the formula written out element by element."""

from __future__ import annotations

import pytest
import torch

from qwenkit.kernels import affine_dequantize, affine_linear


def random_weight(bits: int, out: int, columns: int, groups: int, mixed: bool):
    generator = torch.Generator().manual_seed(out * columns + bits)
    codes = torch.randint(2**bits, (out, columns), generator=generator, dtype=torch.uint8)
    scales = torch.rand(groups, out, generator=generator).half()
    zeros = torch.randint(2**bits, (groups, out), generator=generator, dtype=torch.uint8)
    group = torch.arange(columns, dtype=torch.int32) // -(-columns // groups)
    if mixed:
        group = group[torch.randperm(columns, generator=generator)]
    return codes, scales, zeros, group


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("out", "columns", "groups"), [(3, 8, 2), (5, 12, 1), (7, 10, 3), (1, 4, 4)])
def test_weight_and_product_follow_the_formula(bits, mixed, out, columns, groups):
    codes, scales, zeros, group = random_weight(bits, out, columns, groups, mixed)
    wanted = torch.empty(out, columns)
    for o in range(out):
        for i in range(columns):
            g = int(group[i])
            wanted[o, i] = float(scales[g, o]) * (int(codes[o, i]) - int(zeros[g, o]))
    stored = codes[:, 0::2] | codes[:, 1::2] << 4 if bits == 4 else codes
    assert torch.equal(affine_dequantize(stored, scales, zeros, group, torch.float32, bits=bits), wanted)
    x = torch.randn(2, 3, columns, generator=torch.Generator().manual_seed(0))
    for rows in (1, 2, 1024):
        ours = affine_linear(x, stored, scales, zeros, group, bits=bits, rows=rows)
        torch.testing.assert_close(ours, x @ wanted.t(), atol=1e-4, rtol=1e-5)
