"""GGUF blocks as codes, against the gguf library's own dequantization; blocks are random bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from qwenkit.core import UnsupportedError
from qwenkit.quant.gguf_blocks import AFFINE, codes_from_blocks, nearest_codes

HALVES = {"Q4_0": 1, "Q4_1": 2, "Q5_0": 1, "Q8_0": 1}  # float16 at the front of a block


def random_blocks(kind: str, rows: int = 5, blocks: int = 6) -> torch.Tensor:
    """Every code occurs; the float16 are ordinary numbers of both signs."""
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    draw = np.random.default_rng(len(kind))
    raw = draw.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    halves = draw.normal(0, 0.01, (rows, blocks, HALVES[kind])).astype(np.float16)
    raw[..., : 2 * HALVES[kind]] = halves.view(np.uint8)
    return torch.from_numpy(raw.reshape(rows, -1))


def dequantized(blocks: torch.Tensor, kind: str) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]))


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q8_0"])
def test_blocks_with_one_scale_keep_every_value(kind):
    blocks = random_blocks(kind)
    assert torch.equal(codes_from_blocks(blocks, kind).dequantize(), dequantized(blocks, kind))


def test_a_scale_and_a_minimum_keep_every_value():
    blocks = random_blocks("Q4_1")
    ours, theirs = codes_from_blocks(blocks, "Q4_1").dequantize(), dequantized(blocks, "Q4_1")
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def test_kinds_are_those_tested():
    assert set(HALVES) == AFFINE


def test_other_blocks_become_eight_bits_in_groups_of_32():
    with pytest.raises(UnsupportedError, match="Q5_1"):
        codes_from_blocks(torch.zeros(1, 24, dtype=torch.uint8), "Q5_1")
    weight = torch.randn(4, 256)
    codes = nearest_codes(weight)
    assert (codes.bits, codes.group) == (8, 32)
    assert (codes.dequantize() - weight).norm() < 0.006 * weight.norm()


def test_scales_that_are_no_numbers_are_refused():
    blocks = random_blocks("Q8_0")
    blocks[2, :2] = torch.tensor([0, 0x7E], dtype=torch.uint8)  # NaN
    with pytest.raises(UnsupportedError, match="float16"):
        codes_from_blocks(blocks, "Q8_0")
