"""Requests that run together give what each gives alone, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from qwenkit.core import Completion, ContextLengthError, QwenkitError, SamplingParams
from qwenkit.engine import Qwen
from qwenkit.engine.vocabulary import Vocabulary
from qwenkit.model import Batch, CausalLM

SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=7, max_tokens=24)
GREEDY = SamplingParams(temperature=0, max_tokens=24)


def prompts(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (n,), generator=generator).tolist() for n in lengths]


def results(completions: list[Completion]) -> list[object]:
    return [completion.choices for completion in completions]


def restated_greedy(model: CausalLM, prompt: list[int], steps: int, vocabulary: int) -> list[int]:
    """No cache, no chunks: the whole text anew for each token, with the NTK factor of the prompt."""
    from qwenkit.model import ntk_alpha

    shape = model.shape
    alpha = ntk_alpha(len(prompt), shape.seq_length) if shape.dynamic_ntk else 1.0
    tokens = list(prompt)
    for _ in range(steps):
        with torch.inference_mode():
            batch = Batch.make(1, len(tokens), ntk_alpha=(alpha,))
            logits = model(torch.tensor([tokens]), batch)[0, -1, :vocabulary]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("chunk", [3, 16, 1024])
def test_greedy_equals_a_restatement_without_cache_or_batch(tiny, byte_tokenizer, chunk):
    """The lengths lie on both sides of tiny_v1's training length of 32, and of twice that."""
    many = prompts([1, 5, 20, 31, 33, 60, 66, 9])
    qwen = Qwen(tiny, byte_tokenizer, step_tokens=chunk, max_running=3, block_tokens=4)
    ours = qwen.generate_ids(many, GREEDY, ignore_eos=True)
    for prompt, completion in zip(many, ours, strict=True):
        assert list(completion.token_ids) == restated_greedy(tiny, prompt, 24, len(byte_tokenizer))


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_batch_equals_its_single_runs(tiny, byte_tokenizer, params):
    many = prompts([3, 40, 17, 3, 70, 28], seed=1)
    qwen = Qwen(tiny, byte_tokenizer)
    together = qwen.generate_ids(many, params)
    alone = [qwen.generate_ids([prompt], params)[0] for prompt in many]
    assert results(together) == results(alone)
    assert len({completion.token_ids for completion in together}) == 6


@pytest.mark.parametrize("kv_cache", ["auto", "int8", "int8-affine", "int4"])
@pytest.mark.parametrize("tokens", [64, 120, 400])
def test_a_small_cache_does_not_change_results(tiny, byte_tokenizer, tokens, kv_cache):
    """Requests wait and are preempted and computed anew; the longest just fits."""
    many = prompts([9, 30, 2, 45, 16], seed=2)
    params = SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=12, logprobs=1)
    options = {"kv_cache": kv_cache, "block_tokens": 8}
    free = Qwen(tiny, byte_tokenizer, **options).generate_ids(many, params)
    bound = Qwen(tiny, byte_tokenizer, cache_tokens=tokens, **options).generate_ids(many, params)
    for a, b in zip(free, bound, strict=True):
        assert [c.token_ids for c in a.choices] == [c.token_ids for c in b.choices]
        assert [c.text for c in a.choices] == [c.text for c in b.choices]
        assert a.usage.total_tokens == b.usage.total_tokens


def test_what_can_never_fit_is_refused_with_the_numbers(tiny_qwen2, byte_tokenizer):
    qwen = Qwen(tiny_qwen2, byte_tokenizer, cache_tokens=60, block_tokens=8)
    with pytest.raises(ContextLengthError, match=r"50 tokens and max_tokens is 20, 70 .*cache.* 64 .*=14"):
        qwen.generate("x" * 50, max_tokens=20)
    assert len(qwen.generate("x" * 60, ignore_eos=True).token_ids) == 4  # a default is lowered to what fits


@pytest.mark.parametrize(
    ("kv_cache", "most"), [("int8", 0.1), ("int8-affine", 0.1), ("int4", 1.0), ("int8-original", 0.3)]
)
def test_quantized_caches_change_little_but_something(tiny_v1, byte_tokenizer, kv_cache, most):
    (ids,) = prompts([60])
    exact = torch.tensor(Qwen(tiny_v1, byte_tokenizer).score(ids))
    rough = torch.tensor(Qwen(tiny_v1, byte_tokenizer, kv_cache=kv_cache).score(ids))
    assert 1e-4 < (rough - exact).abs().max() < most


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_scores_are_those_of_the_whole_text_at_once(tiny, byte_tokenizer, chunk):
    from qwenkit.model import Batch, ntk_alpha

    (ids,) = prompts([100], seed=5)
    shape = tiny.shape
    alpha = ntk_alpha(100, shape.seq_length) if shape.dynamic_ntk else 1.0
    with torch.inference_mode():
        logits = tiny(torch.tensor([ids]), Batch.make(1, 100, ntk_alpha=(alpha,)))[0, :-1, :260].double()
    expected = logits.log_softmax(-1)[torch.arange(99), ids[1:]].tolist()
    assert Qwen(tiny, byte_tokenizer).score(ids, chunk=chunk) == pytest.approx(expected, abs=1e-4)


def test_a_window_hides_what_lies_before_it(tiny_qwen2, byte_tokenizer):
    """With one layer that sees 4 tokens, what came earlier does not matter; with two it seeps through."""
    a, b = prompts([40, 40], seed=9)
    a[-8:] = b[-8:]
    last = [Qwen(tiny_qwen2, byte_tokenizer, attention_window=4).score(ids)[-1] for ids in (a, b)]
    assert last[0] == pytest.approx(last[1], abs=1e-6)
    last = [Qwen(tiny_qwen2, byte_tokenizer, attention_window=[4, None]).score(ids)[-1] for ids in (a, b)]
    assert last[0] != pytest.approx(last[1], abs=1e-6)


def test_choices_of_one_prompt_differ_and_repeat_with_the_seed(tiny, byte_tokenizer):
    qwen = Qwen(tiny, byte_tokenizer)
    (prompt,) = prompts([12])
    four = qwen.generate_ids([prompt], SAMPLED, n=4)[0]
    two = qwen.generate_ids([prompt], SAMPLED, n=2)[0]
    assert len({choice.token_ids for choice in four.choices}) == 4
    assert four.choices[:2] == two.choices
    assert four.usage.prompt_tokens == 12
    unseeded = [qwen.generate_ids([prompt], SAMPLED, seed=None)[0].token_ids for _ in range(3)]
    assert len(set(unseeded)) == 3


def test_rows_without_text_are_never_chosen(tiny_qwen2, byte_tokenizer):
    (prompt,) = prompts([6])
    free = [int(t) for t in restated_greedy(tiny_qwen2, prompt, 60, 272)]
    assert max(free) >= len(byte_tokenizer)  # left alone, the model would choose a padding row
    hot = SamplingParams(temperature=3.0, seed=0, max_tokens=60, ignore_eos=True)
    for params in (hot, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)):
        ids = Qwen(tiny_qwen2, byte_tokenizer).generate_ids([prompt], params)[0].token_ids
        assert len(ids) == 60
        assert max(ids) < len(byte_tokenizer)


def test_ids_missing_inside_the_vocabulary_are_never_chosen_nor_read(tiny_qwen2, byte_tokenizer):
    from qwenkit.text import Tokenizer

    gap = Tokenizer(
        {bytes([i]): i for i in range(256)},
        special_tokens={"<|endoftext|>": 262, "<|im_start|>": 263, "<|im_end|>": 264},
    )
    assert Vocabulary(gap, 272).holes == frozenset(range(256, 262))
    qwen = Qwen(tiny_qwen2, gap)
    hot = SamplingParams(temperature=50.0, seed=0, max_tokens=60, ignore_eos=True, logprobs=300)
    completion = qwen.generate_ids([[1]], hot)[0]
    assert not set(completion.token_ids) & set(range(256, 262))
    assert len(completion.choices[0].logprobs[0].top) == 259
    with pytest.raises(QwenkitError, match="token id 258"):
        qwen.generate_ids([[258]])


def test_timings_and_usage_are_filled(tiny, byte_tokenizer):
    qwen = Qwen(tiny, byte_tokenizer, max_running=1)  # one prompt after the other
    first, second = qwen.generate_ids(prompts([30, 20]), GREEDY, ignore_eos=True)
    assert first.usage.prompt_tokens == 30
    assert first.usage.completion_tokens == 24
    assert first.timings.prefill_s > 0
    assert first.timings.decode_s > 0
    assert second.timings.queue_s >= first.timings.prefill_s + first.timings.decode_s


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_logits_end_with_an_error(scripted, byte_tokenizer, bad):
    model = scripted(b"abcdefgh", prompt_length=2)
    model.poison = bad
    with pytest.raises(QwenkitError, match="NaN or infinite"):
        Qwen(model, byte_tokenizer).generate("xy", max_tokens=4)


def test_padding_rows_may_be_anything(scripted, byte_tokenizer):
    model = scripted(b"abcd", prompt_length=2)
    inner = model.forward
    model.forward = lambda *a, **k: inner(*a, **k).index_fill(2, torch.tensor([268]), float("nan"))
    assert Qwen(model, byte_tokenizer).generate("xy", max_tokens=4).text == "abcd"


@pytest.mark.parametrize("most", [2, 7, 60])
def test_no_pass_reads_more_tokens_than_allowed(tiny, byte_tokenizer, monkeypatch, most):
    passes: list[int] = []
    inner = tiny.transformer.forward

    def counted(tokens: torch.Tensor, *arguments: object) -> torch.Tensor:
        passes.append(tokens.numel())
        return inner(tokens, *arguments)

    monkeypatch.setattr(tiny.transformer, "forward", counted)
    qwen = Qwen(tiny, byte_tokenizer, step_tokens=most, max_running=2)
    qwen.generate_ids(prompts([30, 30]), GREEDY, max_tokens=1)
    assert max(passes) <= most
    assert sum(passes) == 60
