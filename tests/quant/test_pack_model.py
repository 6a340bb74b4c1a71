"""A model whose linear layers were packed says what it said before."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from qwenkit.kernels import native
from qwenkit.model import Batch, CausalLM, DenseCache, ModelConfig
from qwenkit.quant import AffineLinear, PackedBf16Linear, PackedLinear, pack_model

pytestmark = pytest.mark.skipif(not native.ready(), reason=native.explain())

SHAPE = ModelConfig(
    vocab_size=300, hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, ffn_size=200,
    rotary_dim=32, tied_embeddings=True, initializer_range=0.1,
)  # fmt: skip


@torch.inference_mode()
def logits(model: CausalLM) -> torch.Tensor:
    """Prefill and three decoded steps, float32 [13, vocab]."""
    ids = torch.arange(13)[None] * 7 % 300
    cache = DenseCache(model.shape.num_layers)
    parts = [model(ids[:, :10], Batch.make(1, 10, cache=cache))]
    parts += [model(ids[:, i : i + 1], Batch.make(1, 1, past=i, cache=cache)) for i in range(10, 13)]
    return torch.cat(parts, 1)[0].float()


def test_a_bfloat16_model_stays_close_to_its_float32_self():
    exact = CausalLM(SHAPE).initialize(seed=3).bfloat16().float().eval()
    model = CausalLM(SHAPE).initialize(seed=3).bfloat16().eval()
    expected, before = logits(exact), logits(model)
    assert pack_model(model) is None
    after = logits(model)
    kinds = [type(m) for m in model.modules() if "Linear" in type(m).__name__]
    assert set(kinds) == {PackedBf16Linear}
    # Packing may round differently than torch does, but not worse.
    assert (after - expected).abs().mean() < 1.2 * (before - expected).abs().mean()
    assert isinstance(model.transformer.wte, nn.Embedding)


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_layers_keep_every_weight(bits):
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (96, 256), generator=generator, dtype=torch.uint8)
    layer = AffineLinear(
        codes if bits == 8 else codes[:, 0::2] | codes[:, 1::2] << 4,
        torch.rand(2, 96, generator=generator).half() * 0.02,
        torch.randint(0, 2**bits, (2, 96), generator=generator, dtype=torch.uint8),
        torch.randint(0, 2, (256,), generator=generator, dtype=torch.int32),
        bits=bits,
        bias=torch.randn(96, generator=generator),
    )
    weight = layer.dequantize(torch.float32)
    model = nn.Sequential(layer)
    assert pack_model(model) is None
    packed = model[0]
    assert isinstance(packed, PackedLinear)
    assert torch.equal(packed.dequantize(), weight)
    x = torch.randn(5, 256, generator=generator)
    with torch.inference_mode():
        ours = packed(x)
    expected = x.double() @ weight.double().T + layer.bias
    # Activations are rounded to 8 bits a group: relative error of a sum of 256 products.
    assert ((ours - expected).norm() / expected.norm()) < 0.01


def test_what_cannot_be_packed_is_said():
    model = CausalLM(SHAPE).initialize().eval()
    why = pack_model(model)
    assert "float32 weights have no native kernel" in why
    assert why.startswith("11 layers")
    assert not any(isinstance(m, PackedBf16Linear) for m in model.modules())


def test_scales_beyond_float16_stay_exact_in_torch():
    layer = AffineLinear(
        torch.zeros(16, 32, dtype=torch.uint8), torch.full((1, 16), 1 / 3),
        torch.zeros(1, 16, dtype=torch.uint8), torch.zeros(32, dtype=torch.int32), bits=8,
    )  # fmt: skip
    model = nn.Sequential(layer)
    assert "float16" in pack_model(model)
    assert model[0] is layer


def test_each_layer_is_freed_before_the_next_is_packed(monkeypatch):
    model = CausalLM(SHAPE).initialize().bfloat16().eval()
    alive = [weakref.ref(m) for m in model.modules() if isinstance(m, nn.Linear)]
    most = []
    pack = PackedBf16Linear.from_linear

    def watched(linear: nn.Linear) -> PackedBf16Linear:
        most.append(sum(ref() is not None for ref in alive))
        return pack(linear)

    monkeypatch.setattr(PackedBf16Linear, "from_linear", watched)
    pack_model(model)
    assert most == list(range(11, 0, -1))
