"""A batch gives what each of its prompts gives alone, in bounded memory; streams can be left at any time."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import Completion, GenerationConfig, QwenkitError, SamplingParams
from qwenkit.engine import Qwen
from qwenkit.engine.plan import plan_batches
from qwenkit.engine.request import Request
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
    qwen = Qwen(tiny, byte_tokenizer, prefill_chunk=chunk)
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


@pytest.mark.parametrize("limit", [1, 60, 130, 400])
def test_memory_bound_does_not_change_results(tiny, byte_tokenizer, limit):
    many = prompts([9, 30, 2, 45, 16], seed=2)
    params = SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=12, logprobs=1)
    free = Qwen(tiny, byte_tokenizer).generate_ids(many, params)
    bound = Qwen(tiny, byte_tokenizer, max_batch_tokens=limit).generate_ids(many, params)
    for a, b in zip(free, bound, strict=True):
        assert [c.token_ids for c in a.choices] == [c.token_ids for c in b.choices]
        assert [c.text for c in a.choices] == [c.text for c in b.choices]
        assert a.usage == b.usage


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30), st.integers(1, 5)), max_size=12),
    st.integers(1, 400),
)
def test_plan_places_every_sequence_once_within_the_bound(tiny_qwen2, byte_tokenizer, shapes, limit):
    vocabulary = Vocabulary(byte_tokenizer, 272)
    requests = [
        Request(
            [0] * length,
            SamplingParams(max_tokens=reply, n=n),
            config=tiny_qwen2.shape,
            vocabulary=vocabulary,
            defaults=SamplingParams(),
        )
        for length, reply, n in shapes
    ]
    batches = plan_batches(requests, limit)
    placed = [sequence for batch in batches for share in batch for sequence in share.sequences]
    assert sorted(map(id, placed)) == sorted(id(s) for r in requests for s in r.sequences)
    for batch in batches:
        rows = sum(len(share.sequences) for share in batch)
        width = max(len(share.request.prompt_ids) for share in batch)
        reply = max(share.request.max_tokens for share in batch)
        assert rows == 1 or rows * (width + reply) <= limit
        assert all(s.prompt_ids == share.request.prompt_ids for share in batch for s in share.sequences)


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
    qwen = Qwen(tiny, byte_tokenizer, max_batch_tokens=1)  # one prompt after the other
    first, second = qwen.generate_ids(prompts([30, 20]), GREEDY, ignore_eos=True)
    assert first.usage.prompt_tokens == 30
    assert first.usage.completion_tokens == 24
    assert first.timings.prefill_s > 0
    assert first.timings.decode_s > 0
    assert second.timings.queue_s >= first.timings.prefill_s + first.timings.decode_s


def test_closing_a_stream_stops_computing(scripted, byte_tokenizer):
    model = scripted(b"abcdefgh", prompt_length=2)
    stream = Qwen(model, byte_tokenizer).generate_stream("xy", max_tokens=8)
    assert next(stream).text == "a"
    assert model.passes == 1
    next(stream)
    stream.close()
    assert model.passes == 2
    assert list(stream) == []


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


def test_an_interrupt_leaves_the_model_usable(scripted, byte_tokenizer):
    model = scripted(b"abcdefgh", prompt_length=2)
    model.interrupt_at = 3
    qwen = Qwen(model, byte_tokenizer)
    with pytest.raises(KeyboardInterrupt):
        qwen.generate("xy", max_tokens=8)
    assert qwen.generate("xy", max_tokens=8).text == "abcdefgh"


def test_ten_threads_get_what_one_gets(tiny_v1, byte_tokenizer):
    qwen = Qwen(tiny_v1, byte_tokenizer, generation=GenerationConfig(sampling=SAMPLED))
    queries = [f"question {i}" * (1 + i % 3) for i in range(10)]
    expected = [qwen.generate(query).text for query in queries]
    unread = qwen.generate_stream("left alone")
    next(unread)  # a stream in progress must not block the others
    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, qwen.generate(queries[i]).text))
        for i in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(10)] == expected
    assert "".join(delta.text for delta in unread)


def test_streaming_does_not_leave_inference_mode_behind(tiny, byte_tokenizer):
    stream = Qwen(tiny, byte_tokenizer).generate_stream("abc", max_tokens=5, ignore_eos=True)
    next(stream)
    assert not torch.is_inference_mode_enabled()
    stream.close()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(("chunk", "most"), [(1, 2), (7, 7), (1024, 60)])
def test_no_pass_reads_more_tokens_than_the_chunk(tiny, byte_tokenizer, monkeypatch, chunk, most):
    """Two prompts of 30: a chunk covers both rows, and is never less than a token each."""
    passes: list[int] = []
    inner = tiny.transformer.forward

    def counted(tokens: torch.Tensor, *arguments: object) -> torch.Tensor:
        passes.append(tokens.numel())
        return inner(tokens, *arguments)

    monkeypatch.setattr(tiny.transformer, "forward", counted)
    Qwen(tiny, byte_tokenizer, prefill_chunk=chunk).generate_ids(prompts([30, 30]), GREEDY, max_tokens=1)
    assert max(passes) <= most
    assert sum(passes) == 60
