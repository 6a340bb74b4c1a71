"""A small model that guesses: whatever it says, the text is that of the large one."""

from __future__ import annotations

import random

import pytest
import torch

from qwenkit.core import RequestError, SamplingParams
from qwenkit.engine import Qwen
from qwenkit.engine.draft_length import CostTable
from qwenkit.engine.draft_model import DraftModel, check_same_vocabulary
from qwenkit.engine.options import EngineOptions, make_cache
from qwenkit.engine.proposer import DraftRequest
from qwenkit.engine.speculate import Speculator
from qwenkit.model import Batch, CausalLM
from qwenkit.text import Tokenizer


def restated_guess(model: CausalLM, tokens: list[int], count: int, alpha: float) -> tuple[int, ...]:
    """No cache: the whole text anew for each guess."""
    tokens = list(tokens)
    for _ in range(count):
        with torch.inference_mode():
            logits = model(torch.tensor([tokens]), Batch.make(1, len(tokens), ntk_alpha=(alpha,)))
        tokens.append(int(logits[0, -1, :260].argmax()))
    return tuple(tokens[-count:])


@pytest.mark.parametrize("chunk", [3, 512])
def test_guesses_are_the_likeliest_tokens_whatever_was_rejected(tiny_qwen2, chunk):
    """Several texts in turns; each grows by some of its guesses and then something else."""
    rng = random.Random(1)
    cache = make_cache(tiny_qwen2, EngineOptions(block_tokens=4, cache_tokens=400))
    proposer = DraftModel(tiny_qwen2, cache, 260, chunk=chunk)
    texts = {i: [rng.randrange(256) for _ in range(rng.randint(1, 20))] for i in range(4)}
    for _ in range(8):
        some = rng.sample(sorted(texts), rng.randint(1, 4))
        requests = [DraftRequest(i, texts[i], rng.randint(1, 5)) for i in some]
        for request, guess in zip(requests, proposer.propose(requests), strict=True):
            assert guess == restated_guess(tiny_qwen2, texts[request.sequence_id], request.count, 1.0)
            kept = rng.randint(0, len(guess))
            texts[request.sequence_id] += [*guess[:kept], rng.randrange(256)]
        proposer._blocks.check_integrity()
        if rng.random() < 0.3:
            proposer.forget(some[0])
    for i in texts:
        proposer.forget(i)
    assert proposer._blocks.available == 100


def test_without_room_there_is_no_guess(tiny_qwen2):
    cache = make_cache(tiny_qwen2, EngineOptions(block_tokens=4, cache_tokens=24))
    proposer = DraftModel(tiny_qwen2, cache, 260)
    long, short = DraftRequest(0, [1] * 18, 4), DraftRequest(1, [2] * 5, 2)
    assert [len(guess) for guess in proposer.propose([long, short])] == [4, 0]
    proposer.forget(0)
    assert [len(guess) for guess in proposer.propose([short])] == [2]
    assert proposer.propose([DraftRequest(2, [1] * 199, 5)]) == [()]  # past the context of 200


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_text_is_that_without_a_draft_model(tiny_v1, tiny_qwen2, byte_tokenizer, temperature):
    params = SamplingParams(temperature=temperature, seed=4, max_tokens=40, ignore_eos=True, n=2)
    prompts = [[i, i + 1] * (1 + 6 * i) for i in range(5)]
    plain = Qwen(tiny_v1, byte_tokenizer, speculate="off")
    expected = plain.generate_ids(prompts, params)
    qwen = Qwen(tiny_v1, byte_tokenizer, draft=Qwen(tiny_qwen2, byte_tokenizer))
    assert [c.choices for c in qwen.generate_ids(prompts, params)] == [c.choices for c in expected]
    guessing = qwen.engine._speculator._proposer._runner.cache
    assert guessing.tokens == qwen.engine.cache.tokens  # the same texts, however much memory there is
    # A model that guesses for itself is always right when greedy; taken to be cheap, it is asked often.
    qwen = Qwen(tiny_v1, byte_tokenizer)
    itself = DraftModel(tiny_v1, make_cache(tiny_v1, qwen.options), 260)
    qwen.engine._speculator = Speculator(itself, CostTable({1: 1.0, 64: 1.5}))
    assert [c.choices for c in qwen.generate_ids(prompts, params)] == [c.choices for c in expected]
    if temperature == 0:
        assert qwen.engine.stats().steps < 0.4 * plain.engine.stats().steps


def test_another_vocabulary_is_refused(tiny_v1, byte_tokenizer):
    swapped = {bytes([i]): (i ^ 1 if i in (64, 65) else i) for i in range(256)}
    other = Tokenizer(swapped, special_tokens=dict(byte_tokenizer.special_tokens), name="other")
    with pytest.raises(RequestError, match=r"token 64 as b'A', the model as b'@'"):
        check_same_vocabulary(other, byte_tokenizer)
    check_same_vocabulary(byte_tokenizer, byte_tokenizer)
