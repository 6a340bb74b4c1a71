"""Rounding lines: the compiled kernel against the lines in torch, and both against the rule written out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native
from qwenkit.kernels.rounding import MOST_LINES, Lines, group_grid


@contextlib.contextmanager
def forced(name: str) -> Iterator[None]:
    if not native.built():
        yield
        return
    before = native.isa()
    native.set_isa(name)
    try:
        yield
    finally:
        native.set_isa(before)


def made(values: torch.Tensor, carry: torch.Tensor) -> Lines:
    return Lines(
        values.clone(), carry, torch.zeros(values.shape, dtype=torch.uint8), torch.zeros(values.shape)
    )


def dyadic(count: int, outputs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers on which every operation of a few lines is exact, whatever the order."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-64, 65, (count, outputs), generator=generator) / 16
    carry = torch.randint(-1, 2, (count, count), generator=generator).float().triu(1) / 2
    return values, carry + torch.eye(count)


def by_hand(values, carry, first, last, scale, zero, bits):
    """One number after the other, in Python's own doubles."""
    rows = [list(map(float, row)) for row in values]
    codes = {}
    for output in range(values.shape[1]):
        s, z = float(scale[output]), float(zero[output])
        for i in range(first, last):
            code = min(max(round(rows[i][output] / s) + z, 0), 2**bits - 1)
            codes[i, output] = code
            error = (rows[i][output] - (code - z) * s) / float(carry[i, i])
            for j in range(i + 1, len(rows)):
                rows[j][output] -= float(carry[i, j]) * error
            rows[i][output] = error
    return rows, codes


@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 5),
    outputs=st.integers(1, 150),
    bits=st.sampled_from([4, 8]),
    data=st.data(),
)
def test_every_path_follows_the_rule(seed, count, outputs, bits, data):
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    values, carry = dyadic(count, outputs, seed)
    scale, zero = torch.full((outputs,), 0.5), torch.full((outputs,), 2.0 ** (bits - 1))
    rows, codes = by_hand(values, carry, first, last, scale, zero, bits)
    for name in native.available_isas():
        lines = made(values, carry)
        with forced(name):
            lines.round(first, last, scale, zero, bits)
        for (i, output), code in codes.items():
            assert lines.codes[i, output] == code, name
            assert lines.errors[i, output] == rows[i][output], name
        for j in range(last, count):
            assert lines.values[j].tolist() == rows[j], name


def test_compiled_and_plain_agree_on_a_real_sized_block(isa):
    torch.manual_seed(0)
    values, carry = torch.randn(MOST_LINES, 200), torch.randn(MOST_LINES, MOST_LINES).triu(1) * 0.05
    carry += torch.eye(MOST_LINES) * torch.rand(MOST_LINES).add(0.5)
    scale, zero = torch.rand(200) * 0.2 + 0.1, torch.full((200,), 8.0)
    ours, plain = made(values, carry), made(values, carry)
    ours.round(16, 112, scale, zero, 4)
    plain._plain(16, 112, scale, zero, 4)
    same = ours.codes == plain.codes
    assert same.float().mean() > 0.999  # a sum in another order may tip a number that lies between two codes
    outputs = same.all(0)
    torch.testing.assert_close(ours.errors[:, outputs], plain.errors[:, outputs], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.values[112:, outputs], plain.values[112:, outputs], rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused():
    values, carry = dyadic(4, 8, 0)
    with pytest.raises(UnsupportedError, match="carry"):
        made(values, carry[:3])
    with pytest.raises(UnsupportedError, match="at most 128"):
        made(*dyadic(129, 8, 0))
    with pytest.raises(UnsupportedError, match="Lines 2 to 5 of 4"):
        made(values, carry).round(2, 5, torch.ones(8), torch.zeros(8), 4)


def best_grid(values, share, bits, symmetric, clip):
    """Every candidate range of one output, in Python's own doubles but for the float16 of the scale."""
    top = 2**bits - 1
    low, high = min(0.0, *values), max(0.0, *values)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    if low == high:
        low, high = -1.0, 1.0
    found = []
    for step in range(7 if clip else 1):
        kept = 1 - 0.05 * step
        scale = max(float(np.float16((high - low) * kept / top)), 2.0**-24)
        zero = (top + 1) // 2
        if not symmetric:
            zero = round(-low * kept / scale)
            if zero < 1:
                zero, scale = 1, max(float(np.float16(high * kept / (top - 1))), 2.0**-24)
            zero = min(zero, top)
        codes = [min(max(round(value / scale) + zero, 0), top) for value in values]
        cost = sum(
            s * (value - (code - zero) * scale) ** 2
            for s, value, code in zip(share, values, codes, strict=True)
        )
        found.append((cost, scale, zero))
    return found


@given(
    seed=st.integers(0, 2**31),
    count=st.integers(2, 40),
    outputs=st.integers(1, 130),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    clip=st.booleans(),
)
def test_the_grid_is_the_cheapest_of_all_candidates(seed, count, outputs, bits, symmetric, clip):
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randn(count, outputs, generator=generator)
    lines[:, 0] = 0
    share = torch.rand(count, generator=generator) + 0.1
    for name in native.available_isas():
        with forced(name):
            scales, zeros = group_grid(lines, share, bits, symmetric=symmetric, clip=clip)
        for output in {0, outputs // 2, outputs - 1}:
            candidates = best_grid(lines[:, output].tolist(), share.tolist(), bits, symmetric, clip)
            known = {(scale, zero): cost for cost, scale, zero in candidates}
            chosen = min(
                known,
                key=lambda one: abs(one[0] - float(scales[output])) + abs(one[1] - float(zeros[output])),
            )
            assert float(scales[output]) == pytest.approx(chosen[0], rel=1e-3), name  # a float16 next to it
            assert abs(float(zeros[output]) - chosen[1]) <= 1
            assert known[chosen] <= min(known.values()) * 1.01 + 1e-9


def test_a_scale_beyond_float16_is_infinite(isa):
    lines = torch.tensor([[1e6, 1.0], [-1e6, -1.0]])
    scales, _ = group_grid(lines, torch.ones(2), 4, symmetric=True, clip=True)
    assert scales.isinf().tolist() == [True, False]
