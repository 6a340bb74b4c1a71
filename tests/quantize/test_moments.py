"""Second moments against float64."""

from __future__ import annotations

import pytest
import torch

from qwenkit.quantize.moments import SecondMoments


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("size", "lengths"), [(1, [3]), (7, [1, 5]), (96, [64, 33, 1]), (130, [700])])
def test_means_are_those_of_float64(size, lengths, dtype):
    generator = torch.Generator().manual_seed(size)
    parts = [torch.randn(n, size, generator=generator).to(dtype) for n in lengths]
    moments = SecondMoments(size)
    with torch.no_grad():
        for part in parts:
            moments.add(part)
    x = torch.cat(parts).double()
    found = moments.mean()
    assert torch.equal(found, found.t())
    torch.testing.assert_close(found.double(), x.t() @ x / len(x), rtol=1e-4, atol=1e-5)


def test_nothing_added_is_zero():
    assert not SecondMoments(5).mean().any()
