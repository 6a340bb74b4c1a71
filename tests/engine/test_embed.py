"""Vectors are those of transformers' hidden states, however inputs are packed into passes."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenkit import Qwen
from qwenkit.core import ContextLengthError, RequestError
from qwenkit.engine.embed import _tables, passes
from qwenkit.model import CausalLM
from qwenkit.text import Tokenizer

TEXTS = ["a", "hello there", "中文也行", "x" * 150, "the end", "word " * 30]


@given(st.lists(st.integers(1, 70), max_size=30), st.integers(1, 40), st.integers(1, 16))
def test_passes_read_every_token_once_in_blocks_of_its_own(
    lengths: list[int], chunk: int, block: int
) -> None:
    plan = passes(lengths, chunk)
    read: list[list[int]] = [[] for _ in lengths]
    tables, total = _tables(plan, lengths, block)
    unfinished: set[int] = set()
    for pieces in plan:
        assert 0 < sum(end - start for _, start, end in pieces) <= chunk
        unfinished |= {i for i, _, _ in pieces}
        held = [b for i in unfinished for b in tables[i]]
        assert len(held) == len(set(held))
        assert set(held) <= set(range(total))
        for i, start, end in pieces:
            read[i] += range(start, end)
            if end == lengths[i]:
                unfinished.discard(i)
        assert len(unfinished) <= 1
    assert read == [list(range(length)) for length in lengths]
    longest = max(lengths, default=0)
    assert total <= math.ceil(longest / block) + chunk


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("step_tokens", [7, 512])
def test_vectors_are_those_of_transformers(
    tmp_path: Path, byte_tokenizer: Tokenizer, tiny_qwen2: CausalLM, pooling: str, step_tokens: int
) -> None:
    transformers = pytest.importorskip("transformers")
    ours, shape = tiny_qwen2, tiny_qwen2.shape
    config = transformers.Qwen2Config(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_kv_heads,
        intermediate_size=shape.ffn_size, rms_norm_eps=shape.norm_eps, max_position_embeddings=200,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base}, tie_word_embeddings=True,
    )  # fmt: skip
    theirs = transformers.Qwen2Model(config).eval()
    own, fused = ours.state_dict(), theirs.state_dict()
    sizes = [shape.num_heads * 8, shape.num_kv_heads * 8, shape.num_kv_heads * 8]
    fused["embed_tokens.weight"] = own["transformer.wte.weight"]
    fused["norm.weight"] = own["transformer.ln_f.weight"]
    for i in range(shape.num_layers):
        mine, block = f"transformer.h.{i}.", f"layers.{i}."
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", own[f"{mine}attn.c_attn.{kind}"].split(sizes), strict=True):
                fused[f"{block}self_attn.{name}_proj.{kind}"] = part
        for name, source in (
            ("self_attn.o_proj", "attn.c_proj"), ("mlp.up_proj", "mlp.w1"), ("mlp.gate_proj", "mlp.w2"),
            ("mlp.down_proj", "mlp.c_proj"), ("input_layernorm", "ln_1"),
            ("post_attention_layernorm", "ln_2"),
        ):  # fmt: skip
            fused[f"{block}{name}.weight"] = own[f"{mine}{source}.weight"]
    theirs.load_state_dict(fused)
    qwen = Qwen(ours, byte_tokenizer, step_tokens=step_tokens, max_running=1)
    found = qwen.embed(TEXTS, pooling=pooling)  # type: ignore[arg-type]
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            states = theirs(torch.tensor([list(text.encode())])).last_hidden_state[0]
        expected = states.mean(0) if pooling == "mean" else states[-1]
        torch.testing.assert_close(vector, expected / expected.norm(), atol=2e-5, rtol=1e-4)


def test_one_text_many_and_token_ids_say_the_same(tiny: CausalLM, byte_tokenizer: Tokenizer) -> None:
    qwen = Qwen(tiny, byte_tokenizer)
    many = qwen.embed(["abc", [97, 98, 99], "abcd"])
    assert many.shape == (3, tiny.shape.hidden_size)
    assert many.dtype == torch.float32
    torch.testing.assert_close(many.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(many[0], many[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(qwen.embed("abc")[0], many[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(qwen.embed([97, 98, 99])[0], many[0], rtol=0, atol=1e-5)
    assert (many[0] - many[2]).abs().max() > 1e-3


def test_past_the_training_length_each_input_has_its_own_ntk(
    tiny_v1: CausalLM, byte_tokenizer: Tokenizer
) -> None:
    qwen = Qwen(tiny_v1, byte_tokenizer, step_tokens=24, max_running=1)
    texts = ["a" * 20, "bc" * 40, "d" * 33]
    together = qwen.embed(texts)
    for text, vector in zip(texts, together, strict=True):
        torch.testing.assert_close(qwen.embed(text)[0], vector, atol=2e-5, rtol=1e-4)


def test_what_has_no_vector_is_refused(tiny_qwen2: CausalLM, byte_tokenizer: Tokenizer) -> None:
    qwen = Qwen(tiny_qwen2, byte_tokenizer, cache_tokens=64)
    assert qwen.embedding_limit == 64
    with pytest.raises(ContextLengthError, match="Input 2 of 2 has 65 tokens; the limit is 64"):
        qwen.embed(["a", "b" * 65])
    with pytest.raises(ContextLengthError, match="Input 1 of 1 has at least"):
        qwen.embed("b" * 100_000)
    with pytest.raises(RequestError, match="Input 1 of 1 is empty"):
        qwen.embed("")
    with pytest.raises(RequestError, match="Input 2 of 2 contains token id 999"):
        qwen.embed([[1], [999]])
    with pytest.raises(RequestError, match="pooling 'max'"):
        qwen.embed("a", pooling="max")  # type: ignore[arg-type]
    assert qwen.embed([]).shape == (0, tiny_qwen2.shape.hidden_size)


def test_beside_requests_both_say_what_they_say_alone(tiny: CausalLM, byte_tokenizer: Tokenizer) -> None:
    qwen = Qwen(tiny, byte_tokenizer, step_tokens=16, max_running=4)
    alone, text = qwen.embed(TEXTS[:3]), qwen.generate("hi", max_tokens=40, seed=1, temperature=1.0).text
    found: list[torch.Tensor] = []
    beside = threading.Thread(target=lambda: found.extend(qwen.embed(TEXTS[:3]) for _ in range(5)))
    beside.start()
    for _ in range(3):
        assert qwen.generate("hi", max_tokens=40, seed=1, temperature=1.0).text == text
    beside.join()
    for one in found:
        torch.testing.assert_close(one, alone, rtol=0, atol=0)


def test_what_progress_raises_ends_the_work(tiny: CausalLM, byte_tokenizer: Tokenizer) -> None:
    read: list[int] = []

    def stop(tokens: int) -> None:
        read.append(tokens)
        if len(read) == 2:
            raise KeyError

    with pytest.raises(KeyError):
        Qwen(tiny, byte_tokenizer, step_tokens=8, max_running=1).embed("a" * 100, progress=stop)
    assert read == [8, 8]
