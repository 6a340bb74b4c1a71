"""Which weights become what, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qwenkit.core import RequestError
from qwenkit.kernels import native
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.quant import PackedBf16Linear, PackedLinear, Packing, pack_model, round_to_nearest

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=96, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=32, ffn_size=200,
    rotary_dim=32, tied_embeddings=True, initializer_range=0.1,
)  # fmt: skip

native_only = pytest.mark.skipif(not native.ready(), reason=native.explain())


def model() -> CausalLM:
    return CausalLM(SHAPE).initialize(seed=3).bfloat16().eval().requires_grad_(False)


@native_only
@pytest.mark.parametrize(
    ("weights", "head", "bits", "head_bits"),
    [("auto", "auto", 16, 16), ("bf16", "int8", 16, 8), ("int8", "auto", 8, 8), ("int4", "auto", 4, 8),
     ("int4", "int4", 4, 4), ("int4", "bf16", 4, 16), ("exact", "auto", 16, 16)],
)  # fmt: skip
def test_layers_and_head_take_their_own_forms(weights, head, bits, head_bits):
    packed = model()
    embedding = packed.transformer.wte.weight
    assert pack_model(packed, Packing.parse(weights, head)) is None
    for name, module in packed.named_modules():
        if "Linear" in type(module).__name__:
            wanted = head_bits if name == "lm_head" else bits
            if wanted == 16:
                assert isinstance(module, PackedBf16Linear), name
            else:
                assert isinstance(module, PackedLinear), name
                assert module.shape.bits == wanted, name
    # Tied embeddings: the lookup keeps its 16 bits, the head is a copy.
    assert packed.transformer.wte.weight is embedding
    assert embedding.dtype == torch.bfloat16


@native_only
def test_rounded_layers_hold_the_values_of_the_rounding():
    whole, packed = model(), model()
    pack_model(packed, Packing("int4"))
    wanted = round_to_nearest(whole.transformer.h[0].mlp.w1.weight, 4).dequantize()
    assert torch.equal(packed.transformer.h[0].mlp.w1.dequantize(), wanted)
    wanted = round_to_nearest(whole.lm_head.weight, 8).dequantize()
    assert torch.equal(packed.lm_head.dequantize(), wanted)


@native_only
def test_float32_models_round_too():
    packed = CausalLM(SHAPE).initialize(seed=3).eval().requires_grad_(False)
    assert pack_model(packed, Packing("int8")) is None
    assert isinstance(packed.transformer.h[0].attn.c_attn, PackedLinear)


@pytest.mark.usefixtures("reference_kernels")
def test_without_kernels_the_values_are_the_same_and_it_is_said():
    whole, rounded = model(), model()
    said = pack_model(rounded, Packing("int4"))
    assert "torch reference (SLOW)" in said
    assert "6 layers hold their rounded weights as floats" in said
    layer = rounded.transformer.h[0].mlp.c_proj
    assert isinstance(layer, nn.Linear)
    wanted = round_to_nearest(whole.transformer.h[0].mlp.c_proj.weight, 4).dequantize(torch.bfloat16)
    assert torch.equal(layer.weight, wanted)
    assert torch.equal(rounded.transformer.wte.weight, whole.transformer.wte.weight)
    assert not torch.equal(rounded.lm_head.weight, whole.transformer.wte.weight)


@pytest.mark.parametrize(("weights", "head"), [("int3", "auto"), ("4", "auto"), ("int4", "exact")])
def test_unknown_words_are_refused_with_the_choices(weights, head):
    with pytest.raises(RequestError, match="Choose one of auto"):
        Packing.parse(weights, head)


@pytest.mark.parametrize(
    ("stored", "weights", "allowed"),
    [
        ("none (bfloat16)", "int4", True),
        ("GPTQ int4 g128", "auto", True),
        ("GPTQ int4 g128", "exact", True),
        ("GPTQ int4 g128", "int4", True),
        ("GPTQ int4 g128", "int8", False),
        ("GPTQ int8 g128", "bf16", False),
        ("GGUF Q4_K_M", "auto", True),
        ("GGUF Q4_K_M", "bf16", True),
        ("GGUF Q4_K_M", "int4", False),
        ("GGUF F16", "int4", True),
    ],
)
def test_rounding_what_is_rounded_is_refused(stored, weights, allowed):
    packing = Packing.parse(weights)
    if allowed:
        packing.check(stored)
    else:
        with pytest.raises(RequestError, match="take the 16-bit checkpoint"):
            packing.check(stored)


def test_bf16_weights_and_another_dtype_contradict():
    assert Packing("bf16").dtype_for("auto") == "bfloat16"
    assert Packing("int4").dtype_for("float32") == "float32"
    with pytest.raises(RequestError, match="Give one of them"):
        Packing("bf16").dtype_for("float32")
