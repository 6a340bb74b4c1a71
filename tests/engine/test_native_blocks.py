"""The blocks in one compiled call give the bits of the modules called one by one."""

from __future__ import annotations

import random

import pytest
import torch

from qwenkit.engine import native_blocks
from qwenkit.engine.options import EngineOptions, make_cache
from qwenkit.engine.runner import Runner
from qwenkit.engine.scheduler import Row, Step
from qwenkit.kernels import native
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.quant import pack_model
from qwenkit.quant.packed import PackedLinear

pytestmark = pytest.mark.skipif(not native.built(), reason="the native kernels were not built")

CONFIG = ModelConfig(
    vocab_size=300, hidden_size=96, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=16, ffn_size=160,
    rotary_dim=16, seq_length=40, max_positions=200, dynamic_ntk=True, logn=True, initializer_range=0.2,
)  # fmt: skip


def packed_model(weights: str) -> CausalLM:
    model = CausalLM(CONFIG).initialize(1).to(torch.bfloat16).eval().requires_grad_(False)
    for block in model.transformer.h:
        block.attn.c_attn.bias.normal_()
        block.ln_1.weight.uniform_(0.5, 1.5)
        block.ln_2.weight.uniform_(0.5, 1.5)
    if weights == "bf16":
        assert pack_model(model) is None
        return model
    groups = torch.arange(CONFIG.hidden_size) // 32
    for block in model.transformer.h:
        attn, mlp = block.attn, block.mlp
        names = (attn, "c_attn"), (attn, "c_proj"), (mlp, "w1"), (mlp, "w2"), (mlp, "c_proj")
        for parent, name in names:
            linear = getattr(parent, name)
            out, columns = linear.weight.shape
            group = groups if columns == 96 else torch.arange(columns) // 32
            codes = torch.randint(0, 16, (out, columns), dtype=torch.uint8)
            scales = (torch.rand(int(group.max()) + 1, out) * 0.02).half().float()
            bias = None if linear.bias is None else linear.bias
            mode = "16bit" if name == "w1" else "int8"
            setattr(parent, name, PackedLinear.from_codes(
                codes, scales, bits=4, group_of_column=group, bias=bias, activations=mode))  # fmt: skip
    return model


def steps(rng: random.Random) -> list[Step]:
    """Three texts, two past the training length, in pieces side by side; one step is long enough for the
    products of gate and up to meet in the caches."""
    lengths, done, tables = [70, 50, 9], [0, 0, 0], [(3, 0, 7), (1, 4), (6,)]
    made = []
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        rows = []
        for i in rng.sample(range(3), 3):
            count = min(rng.choice([0, 1, 2, 30, 70]), lengths[i] - done[i])
            if count:
                ids = tuple(rng.randrange(300) for _ in range(count))
                rows.append(Row(i, done[i], ids, tables[i], (i,), count - 1, (3.0, 7.0, 1.0)[i], None))
                done[i] += count
        if rows:
            made.append(Step(tuple(rows)))
    assert max(sum(len(row.token_ids) for row in step.rows) for step in made) >= 64
    return made


@pytest.mark.parametrize("isa", native.available_isas()[1:])
@pytest.mark.parametrize("weights", ["bf16", "int4"])
@pytest.mark.parametrize(
    "options", [{}, {"kv_cache": "int8"}, {"kv_cache": "int4"}, {"attention_window": [None, 20, 33]}]
)
def test_same_bits_as_one_by_one(weights, options, isa):
    before = native.isa()
    native.set_isa(isa)
    try:
        model = packed_model(weights)
        chosen = EngineOptions(cache_tokens=256, **options)
        whole, single = (Runner(model, make_cache(model, chosen)) for _ in range(2))
        assert whole.stack is not None
        single.stack = None
        for step in steps(random.Random(3)):
            a, b = whole.compute(step), single.compute(step)
            assert a.isfinite().all()
            assert torch.equal(a, b)
    finally:
        native.set_isa(before)


def test_a_model_that_torch_computes_has_no_stack(tiny_qwen2):
    assert Runner(tiny_qwen2, make_cache(tiny_qwen2, EngineOptions())).stack is None
    model = packed_model("bf16")
    model.transformer.h[1].mlp.w1 = torch.nn.Linear(96, 160)
    assert native_blocks.native_stack(model, make_cache(model, EngineOptions())) is None
