"""What keys have in common is found when a model is loaded, and keeps caches of few bits from losing much."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from qwenkit.engine import Qwen
from qwenkit.engine.key_forms import key_forms
from qwenkit.kernels.key_form import KeyForm
from qwenkit.kernels.paged import FORMED
from qwenkit.model import CausalLM


def keys_of(model: CausalLM) -> slice:
    shape = model.shape
    return slice(shape.num_heads * shape.head_dim, (shape.num_heads + shape.num_kv_heads) * shape.head_dim)


@pytest.fixture
def biased(tiny_qwen2) -> CausalLM:
    """Two channels of keys have a bias of 150 and queries hardly look at them, as in small Qwen2 models."""
    model = copy.deepcopy(tiny_qwen2)
    with torch.no_grad():
        for block in model.transformer.h:
            heads = block.attn.c_attn.weight.view(-1, model.shape.head_dim, model.shape.hidden_size)
            heads[: model.shape.num_heads, [2, 6]] *= 0.01
            block.attn.c_attn.bias[keys_of(model)].view(-1, model.shape.head_dim)[:, [2, 6]] = 150
    return model


@pytest.mark.parametrize("kv_cache", FORMED)
def test_a_bias_of_keys_costs_a_cache_less_with_their_form(biased, byte_tokenizer, kv_cache, monkeypatch):
    ids = torch.randint(0, 256, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    exact = torch.tensor(Qwen(biased, byte_tokenizer).score(ids))

    def error() -> float:
        rough = torch.tensor(Qwen(biased, byte_tokenizer, kv_cache=kv_cache).score(ids))
        return float((rough - exact).square().mean().sqrt())

    with_form = error()
    plain = [KeyForm.plain(2, 8)] * biased.shape.num_layers
    monkeypatch.setattr("qwenkit.engine.options.key_forms", lambda *_: plain)
    without = error()
    assert with_form < without / 4


@pytest.mark.parametrize("format", FORMED)
def test_forms_of_8_bits_have_no_center_and_exact_steps(biased, format):
    for form in key_forms(biased, format):
        large = form.step[:, [2, 6]]
        if format == "int4":
            assert torch.allclose(form.center[:, [2, 6]], torch.tensor(150.0))
            continue
        assert not form.center.any()
        assert torch.equal(form.step.frexp().mantissa, torch.full_like(form.step, 0.5))
        assert torch.equal(large[:, 0], large[:, 1])
        assert (large >= 16 * form.step[:, [0, 1, 3, 4, 5, 7]].amax(1, keepdim=True)).all()


@pytest.mark.parametrize("format", FORMED)
@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_weights_of_no_size_have_steps_of_one(tiny_qwen2, format, value):
    model = copy.deepcopy(tiny_qwen2)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight.fill_(value)
            block.attn.c_attn.bias.zero_()
    for form in key_forms(model, format):
        assert torch.equal(form.step, torch.ones(2, 8))


@pytest.mark.parametrize("format", FORMED)
def test_channels_past_the_rotated_ones_have_steps_of_their_own(tiny_qwen2, format):
    model = CausalLM(replace(tiny_qwen2.shape, rotary_dim=4)).initialize(1)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[keys_of(model)].view(2, 8, -1)[:, [1, 6]] *= 256
    for form in key_forms(model, format):
        log = form.step.log2()
        assert ((log[:, [1, 3, 6]] - log[:, [0, 0, 0]] - 4).abs() < 1.6).all()
        assert (log[:, 7] - log[:, 0] < 2).all()
        assert torch.equal(form.step[:, 1], form.step[:, 3])
