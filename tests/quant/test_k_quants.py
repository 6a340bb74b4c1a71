"""K-quants as nested codes, against the gguf library's own dequantization; blocks are random bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native
from qwenkit.quant import NestedCodes, PackedLinear
from qwenkit.quant.k_quants import NESTED, codes_from_k_blocks

HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
KINDS = sorted(HALVES)


def random_blocks(kind: str, rows: int = 5, blocks: int = 3, seed: int = 0) -> torch.Tensor:
    """Every code and integer scale occurs; the float16 are ordinary numbers of both signs."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    draw = np.random.default_rng(seed)
    raw = draw.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in HALVES[kind]:
        raw[..., at : at + 2] = draw.normal(0, 0.01, (rows, blocks, 1)).astype(np.float16).view(np.uint8)
    return torch.from_numpy(raw.reshape(rows, -1))


def dequantized(blocks: torch.Tensor, kind: str) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]))


def equal_but_for_order(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Products and one difference in float32: only the order of multiplying may differ."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_every_value_is_kept(kind, seed):
    blocks = random_blocks(kind, seed=seed)
    equal_but_for_order(codes_from_k_blocks(blocks, kind).dequantize(), dequantized(blocks, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_packing_keeps_them_too(kind):
    if not native.built():
        pytest.skip("the native kernels are not built in this installation")
    codes = codes_from_k_blocks(random_blocks(kind, rows=21), kind)
    layer = PackedLinear.from_affine(codes)
    assert torch.equal(layer.dequantize(), codes.dequantize())
    x = torch.randn(3, codes.codes.shape[1], generator=torch.Generator().manual_seed(0))
    want = x @ codes.dequantize().t()
    assert (layer(x) - want).norm() < 0.02 * want.norm()


def test_kinds_are_those_tested():
    assert set(HALVES) == NESTED


def test_rows_are_picked_and_stacked():
    blocks = random_blocks("Q4_K", rows=6)
    codes = codes_from_k_blocks(blocks, "Q4_K")
    order = torch.tensor([5, 0, 3])
    assert torch.equal(codes.rows(order).dequantize(), codes.dequantize()[order])
    both = NestedCodes.stack([codes.rows(torch.arange(2)), codes.rows(torch.arange(2, 6))])
    assert torch.equal(both.dequantize(), codes.dequantize())
    other = codes_from_k_blocks(random_blocks("Q6_K"), "Q6_K")
    assert not codes.stacks_with(other)
    with pytest.raises(UnsupportedError, match="different forms"):
        NestedCodes.stack([codes, other])


@pytest.mark.parametrize("kind", KINDS)
def test_scales_that_are_no_numbers_are_refused(kind):
    for at in HALVES[kind]:
        blocks = random_blocks(kind)
        blocks[2, at : at + 2] = torch.tensor([0, 0x7E], dtype=torch.uint8)  # NaN
        with pytest.raises(UnsupportedError, match="no numbers"):
            codes_from_k_blocks(blocks, kind)
