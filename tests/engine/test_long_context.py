"""Texts far longer than the training length, against the formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qwenkit.engine import Qwen
from qwenkit.model import CausalLM, ModelConfig

TRAINED = 8
LENGTHS = {8: 1.0, 9: 3.0, 16: 3.0, 17: 7.0, 27: 7.0, 33: 15.0}
"""Tokens of a text -> NTK factor where 8 tokens were trained (reference: model section 4)."""


def make(dynamic_ntk: bool, logn: bool, kv_heads: int = 3) -> CausalLM:
    config = ModelConfig(
        vocab_size=260, hidden_size=24, num_layers=2, num_heads=3, num_kv_heads=kv_heads, head_dim=8,
        ffn_size=32, rotary_dim=8, rope_base=100.0, seq_length=TRAINED, max_positions=64,
        dynamic_ntk=dynamic_ntk, logn=logn, initializer_range=0.4,
    )  # fmt: skip
    model = CausalLM(config).initialize(seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "ln_" in name:
            parameter.data.normal_(0.5, 0.3, generator=generator)
    return model.eval()


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def restated(model: CausalLM, ids: list[int], alpha: float, logn: bool) -> Tensor:
    """Log probability of each token after the first; one token after the other, all in float64."""
    w = {name: value.double() for name, value in model.state_dict().items()}
    heads, kv_heads, d = 3, model.shape.num_kv_heads, 8
    base = 100.0 * alpha ** (d / (d - 2))
    x = w["transformer.wte.weight"][ids]
    n = len(ids)
    for layer in range(2):
        p = f"transformer.h.{layer}."
        h = norm(x, w[p + "ln_1.weight"])
        qkv = (h @ w[p + "attn.c_attn.weight"].T + w[p + "attn.c_attn.bias"]).view(n, heads + 2 * kv_heads, d)
        turned = qkv.clone()
        for i in range(n):
            for c in range(d // 2):
                angle = i / base ** (2 * c / d)
                low, high = qkv[i, :, c], qkv[i, :, c + d // 2]
                turned[i, :, c] = low * math.cos(angle) - high * math.sin(angle)
                turned[i, :, c + d // 2] = high * math.cos(angle) + low * math.sin(angle)
        out = torch.zeros(n, heads, d, dtype=torch.float64)
        for i in range(n):
            stretch = math.log(i + 1, TRAINED) if logn and i + 1 > TRAINED else 1.0
            for head in range(heads):
                shared = head * kv_heads // heads
                keys = turned[: i + 1, heads + shared]
                values = qkv[: i + 1, heads + kv_heads + shared]
                out[i, head] = torch.softmax(keys @ turned[i, head] * stretch / math.sqrt(d), 0) @ values
        x = x + out.flatten(1) @ w[p + "attn.c_proj.weight"].T
        h = norm(x, w[p + "ln_2.weight"])
        gate = torch.nn.functional.silu(h @ w[p + "mlp.w2.weight"].T)
        x = x + (h @ w[p + "mlp.w1.weight"].T * gate) @ w[p + "mlp.c_proj.weight"].T
    logits = norm(x, w["transformer.ln_f.weight"]) @ w["lm_head.weight"].T
    return logits[:-1].log_softmax(-1)[torch.arange(n - 1), ids[1:]]


def text(length: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length)).tolist()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("logn", [False, True])
@pytest.mark.parametrize("dynamic_ntk", [False, True])
def test_scores_follow_the_formulas(byte_tokenizer, length, dynamic_ntk, logn):
    model, ids = make(dynamic_ntk, logn), text(length)
    expected = restated(model, ids, LENGTHS[length] if dynamic_ntk else 1.0, logn)
    qwen = Qwen(model, byte_tokenizer)
    torch.testing.assert_close(torch.tensor(qwen.score(ids)).double(), expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_no_chunk_size_changes_scores(byte_tokenizer, kv_heads):
    model, ids = make(True, True, kv_heads), text(27)
    expected = restated(model, ids, LENGTHS[27], logn=True)
    for block_tokens in (1, 4, 32):
        qwen = Qwen(model, byte_tokenizer, block_tokens=block_tokens)
        for chunk in range(1, 29):
            found = torch.tensor(qwen.score(ids, chunk=chunk)).double()
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_the_switches_matter_here(byte_tokenizer):
    """Else the tests above would pass without NTK and LogN."""
    ids = text(27)
    found = [torch.tensor(Qwen(make(*s), byte_tokenizer).score(ids)) for s in
             ((False, False), (True, False), (False, True), (True, True))]  # fmt: skip
    for i, a in enumerate(found):
        for b in found[:i]:
            assert (a - b).abs().max() > 0.05
