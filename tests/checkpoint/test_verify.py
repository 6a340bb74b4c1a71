"""The scan for values that are not finite, against torch's own on every bit pattern."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.checkpoint.verify import check_finite
from qwenkit.core import CheckpointError, UnsupportedError

FILE = Path("some.file")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_sixteen_bit_pattern(dtype):
    """Each pattern alone beside a harmless number of either sign."""
    patterns = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    finite = patterns.isfinite().tolist()
    for beside in (-1.0, 1.0):
        for at in [*range(0, 2**16, 97), *range(31700, 31800), *range(32600, 32768), *range(0, 200)]:
            value = torch.tensor([beside, float(patterns[at]), beside], dtype=dtype)
            value[1] = patterns[at]
            if finite[at]:
                check_finite(value, "t", FILE)
            else:
                with pytest.raises(CheckpointError, match=r"some\.file: tensor 't' contains NaN"):
                    check_finite(value, "t", FILE)


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=30))
def test_float32_agrees_with_isfinite(values):
    tensor = torch.tensor(values, dtype=torch.float32)
    if tensor.isfinite().all():
        check_finite(tensor, "t", FILE)
    else:
        with pytest.raises(CheckpointError):
            check_finite(tensor, "t", FILE)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_overflow_agrees_with_the_cast(values):
    tensor = torch.tensor(values, dtype=torch.float32)
    if tensor.abs().max() <= 65504:
        check_finite(tensor, "t", FILE, torch.float16)
    else:
        with pytest.raises(UnsupportedError, match="float16"):
            check_finite(tensor, "t", FILE, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at", [0, 2**18 - 1, 2**18, 5 * 2**18 + 1, 6 * 2**18 + 2])
def test_one_bad_value_anywhere_in_a_large_tensor(dtype, at):
    tensor = torch.ones(6 * 2**18 + 3, dtype=dtype)
    check_finite(tensor, "t", FILE)
    for bad in (torch.nan, torch.inf, -torch.inf):
        tensor[at] = bad
        with pytest.raises(CheckpointError):
            check_finite(tensor, "t", FILE)


def test_other_strides_other_dtypes_and_nothing():
    tensor = torch.ones(4, 6)
    tensor[1, 2] = torch.nan
    with pytest.raises(CheckpointError):
        check_finite(tensor.t(), "t", FILE)
    with pytest.raises(CheckpointError):
        check_finite(torch.tensor([torch.inf], dtype=torch.float64), "t", FILE)
    check_finite(torch.empty(0), "t", FILE)
    check_finite(torch.tensor([2**31 - 1], dtype=torch.int32), "t", FILE)
