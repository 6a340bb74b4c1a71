"""The Qwen2 shapes against transformers' own Qwen2 model on tiny random weights."""

from __future__ import annotations

import pytest
import torch

from qwenkit.model import Batch, CausalLM, DenseCache, ModelConfig

transformers = pytest.importorskip("transformers")

SHAPES = [
    pytest.param(4, 2, False, id="grouped"),
    pytest.param(4, 1, True, id="one KV head, tied"),
    pytest.param(3, 3, False, id="no groups"),
]


def pair(heads: int, kv_heads: int, tied: bool) -> tuple[CausalLM, torch.nn.Module]:
    torch.manual_seed(0)
    theirs_config = transformers.Qwen2Config(
        vocab_size=300, hidden_size=heads * 16, num_hidden_layers=3, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=96, rope_theta=1e6, tie_word_embeddings=tied,
        max_position_embeddings=256, attn_implementation="eager", initializer_range=0.2,
    )  # fmt: skip
    theirs = transformers.Qwen2ForCausalLM(theirs_config).float().eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    ours = CausalLM(ModelConfig.from_dict(theirs_config.to_dict())).eval()
    source = theirs.state_dict()
    state = {
        "transformer.wte.weight": source["model.embed_tokens.weight"],
        "transformer.ln_f.weight": source["model.norm.weight"],
        "lm_head.weight": source["lm_head.weight"],
    }
    names = {
        "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_proj": "self_attn.o_proj",
        "mlp.w1": "mlp.up_proj", "mlp.w2": "mlp.gate_proj", "mlp.c_proj": "mlp.down_proj",
    }  # fmt: skip
    for i in range(3):
        for mine, other in names.items():
            state[f"transformer.h.{i}.{mine}.weight"] = source[f"model.layers.{i}.{other}.weight"]
        for part in ("weight", "bias"):
            state[f"transformer.h.{i}.attn.c_attn.{part}"] = torch.cat(
                [source[f"model.layers.{i}.self_attn.{p}_proj.{part}"] for p in "qkv"]
            )
    ours.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize(("heads", "kv_heads", "tied"), SHAPES)
@torch.inference_mode()
def test_prefill_chunks_and_decode_equal_transformers(heads, kv_heads, tied):
    ours, theirs = pair(heads, kv_heads, tied)
    ids = torch.randint(0, 300, (2, 40))
    expected = theirs(ids).logits
    torch.testing.assert_close(ours(ids, Batch.make(2, 40)), expected, atol=1e-4, rtol=1e-4)
    cache = DenseCache(3, capacity=8)
    steps = [(0, 17), (17, 30), *((i, i + 1) for i in range(30, 40))]
    logits = [ours(ids[:, a:b], Batch.make(2, b - a, past=a, cache=cache)) for a, b in steps]
    torch.testing.assert_close(torch.cat(logits, 1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("heads", "kv_heads", "tied"), SHAPES)
@torch.inference_mode()
def test_left_padding_and_decode_equal_transformers(heads, kv_heads, tied):
    ours, theirs = pair(heads, kv_heads, tied)
    ids = torch.randint(0, 300, (3, 20))
    pads = [0, 7, 15]
    keep = torch.arange(20)[None] >= torch.tensor(pads)[:, None]
    cache = DenseCache(3)
    first = ours(ids[:, :18], Batch.make(3, 18, pads=pads, cache=cache))
    more = [ours(ids[:, i : i + 1], Batch.make(3, 1, past=i, pads=pads, cache=cache)) for i in (18, 19)]
    mine = torch.cat([first, *more], 1)
    for row, pad in enumerate(pads):
        alone = theirs(ids[row : row + 1, pad:]).logits[0]
        torch.testing.assert_close(mine[row, keep[row]], alone, atol=1e-4, rtol=1e-4)
