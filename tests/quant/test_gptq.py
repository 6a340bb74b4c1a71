"""Packed layers made by AutoGPTQ 0.7.1 (tests/data/gptq_layer.safetensors), and the packing itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from qwenkit.core import CheckpointError, UnsupportedError
from qwenkit.quant import AffineLinear, FusedLinear
from qwenkit.quant.gptq import (
    codes_from_words,
    pack_nibbles,
    pack_zeros,
    unpack_nibbles,
    unpack_zeros,
    words_from_codes,
)

LAYER = load_file(Path(__file__).parents[1] / "data" / "gptq_layer.safetensors")
CASES = sorted({name.rsplit(".", 1)[0] for name in LAYER if name.startswith("b")} - {"bias"})


def layer(case: str, **other) -> AffineLinear:
    part = {kind: LAYER[f"{case}.{kind}"] for kind in ("qweight", "qzeros", "scales", "g_idx")}
    return AffineLinear.from_gptq(**part, bits=int(case[1]), **other)


def test_the_cases_include_groups_mixed_by_activation_order():
    assert len(CASES) == 24
    mixed = [
        case
        for case in CASES
        if not torch.equal(LAYER[f"{case}.g_idx"].sort().values, LAYER[f"{case}.g_idx"])
    ]
    assert mixed == [case for case in CASES if case.endswith("_act") and "g32" in case]


@pytest.mark.parametrize("case", CASES)
def test_unpacked_weight_equals_autogptq_exactly(case):
    assert torch.equal(layer(case).dequantize(torch.float32), LAYER[f"{case}.dequantized"])


@pytest.mark.parametrize("case", CASES)
def test_packing_again_gives_the_same_words(case):
    again = layer(case).to_gptq()
    for kind in ("qweight", "qzeros", "scales", "g_idx"):
        assert torch.equal(again[kind], LAYER[f"{case}.{kind}"]), kind


@pytest.mark.parametrize("case", CASES)
def test_forward_equals_the_dequantized_product(case):
    x = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(0))
    bias = LAYER["bias"]
    wanted = torch.nn.functional.linear(x, LAYER[f"{case}.dequantized"], bias)
    torch.testing.assert_close(layer(case, bias=bias)(x), wanted, atol=1e-5, rtol=1e-5)


def test_four_bit_codes_stay_two_a_byte():
    part = layer("b4_g32_sym_noact")
    assert part.codes.shape == (64, 64)
    assert layer("b8_g32_sym_noact").codes.shape == (64, 128)


@given(st.data(), st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 4))
def test_words_follow_the_published_bit_order(data, bits, words, out):
    """Element r of a column is bits b (r mod 32/b) of word r div 32/b."""
    integers = data.draw(
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=words * out, max_size=words * out)
    )
    qweight = torch.tensor(integers, dtype=torch.int32).view(words, out)
    codes = codes_from_words(qweight, bits)
    flat = unpack_nibbles(codes) if bits == 4 else codes
    per = 32 // bits
    for column in range(out):
        for r in range(words * per):
            word = int(qweight[r // per, column]) & 0xFFFFFFFF
            assert int(flat[column, r]) == word >> (bits * (r % per)) & (2**bits - 1)
    assert torch.equal(words_from_codes(codes, bits), qweight)


@given(st.data(), st.sampled_from([4, 8]), st.booleans())
def test_zero_points_wrap_and_pack_back(data, bits, minus_one):
    integers = data.draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6))
    qzeros = torch.tensor(integers, dtype=torch.int32).view(2, 3)
    zeros = unpack_zeros(qzeros, bits, stored_minus_one=minus_one)
    per = 32 // bits
    for group in range(2):
        for o in range(3 * per):
            stored = (int(qzeros[group, o // per]) & 0xFFFFFFFF) >> (bits * (o % per)) & (2**bits - 1)
            assert int(zeros[group, o]) == (stored + minus_one) % 2**bits
    assert torch.equal(pack_zeros(zeros, bits, stored_minus_one=minus_one), qzeros)


@given(st.lists(st.integers(0, 15), min_size=2, max_size=40).filter(lambda x: len(x) % 2 == 0))
def test_nibbles_round_trip(values):
    codes = torch.tensor(values, dtype=torch.uint8)
    assert unpack_nibbles(pack_nibbles(codes)).tolist() == values


def test_missing_g_idx_means_consecutive_groups():
    case = "b4_g32_asym_noact"
    part = AffineLinear.from_gptq(
        LAYER[f"{case}.qweight"], LAYER[f"{case}.qzeros"], LAYER[f"{case}.scales"], None, 4
    )
    assert torch.equal(part.dequantize(torch.float32), LAYER[f"{case}.dequantized"])


def test_parts_of_one_format_stack_and_others_are_concatenated():
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    same = [layer("b4_g32_sym_noact"), layer("b4_g32_asym_noact")]
    other = [layer("b4_g32_sym_noact"), layer("b4_g32_asym_act"), layer("b8_g128_sym_noact")]
    assert isinstance(AffineLinear.stack(same), AffineLinear)
    assert isinstance(AffineLinear.stack(other), FusedLinear)
    for parts in (same, other):
        wanted = torch.cat([part(x) for part in parts], dim=-1)
        torch.testing.assert_close(AffineLinear.stack(parts)(x), wanted, atol=1e-6, rtol=1e-6)


def test_three_bits_are_refused():
    with pytest.raises(UnsupportedError, match="3 bits"):
        AffineLinear.from_gptq(
            *(LAYER[f"b4_g32_sym_act.{k}"] for k in ("qweight", "qzeros", "scales", "g_idx")), 3
        )


def test_groups_that_do_not_fit_are_refused():
    case = "b4_g32_sym_act"
    qweight, qzeros, scales, g_idx = (LAYER[f"{case}.{k}"] for k in ("qweight", "qzeros", "scales", "g_idx"))
    with pytest.raises(CheckpointError, match="zeros has shape"):
        AffineLinear.from_gptq(qweight, qzeros[:2], scales, g_idx, 4)
    with pytest.raises(CheckpointError, match=r"outside 0\.\.\.3"):
        AffineLinear.from_gptq(qweight, qzeros, scales, g_idx + 1, 4)
    with pytest.raises(CheckpointError, match="do not divide"):
        AffineLinear.from_gptq(qweight, qzeros[:3], scales[:3], None, 4)
