"""Many requests at once: threads, event loops, cancelling, failing, and a cache too small for all of them."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripted_model import END, START, STOP

from qwenkit.core import GenerationConfig, QwenkitError, RequestError, SamplingParams
from qwenkit.engine import Qwen
from qwenkit.engine.request import Request
from qwenkit.engine.scheduler import QueueFullError
from qwenkit.engine.stream import Stream

SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=7, max_tokens=24)


def request(qwen: Qwen, ids: list[int], **sampling: object) -> Request:
    return Request(
        ids,
        SamplingParams(**sampling),
        config=qwen.config,
        vocabulary=qwen.engine.vocabulary,
        defaults=SamplingParams(temperature=0.0),
        end_ids=(END, START, STOP),
    )


def settle(condition: Callable[[], bool]) -> None:
    """Wait until it holds; ten seconds are for a machine that does other things."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def idle(qwen: Qwen) -> bool:
    stats = qwen.engine.stats()
    qwen.engine.scheduler.check_integrity()
    return not (stats.scheduler.running or stats.scheduler.waiting or stats.blocks.used)


def test_two_thousand_requests_through_a_quarter_of_the_blocks(tiny_v1, byte_tokenizer):
    """Lengths, n, stops, seeds and cancels at random; every survivor equals its run alone."""
    rng = random.Random(0)
    shared = [rng.randrange(256) for _ in range(16)]
    kinds = []
    for _ in range(100):
        ids = [rng.randrange(256) for _ in range(rng.choice([1, 5, 12, 30, 50]))]
        ids = shared + ids if rng.random() < 0.4 else ids
        sampling = {
            "temperature": rng.choice([0.0, 1.0]),
            "seed": rng.randrange(2**32),
            "n": rng.choice([1, 1, 3]),
        }
        sampling["max_tokens"] = rng.choice([1, 5, 12, 60])
        if rng.random() < 0.3:
            sampling["stop"] = (chr(rng.randrange(32, 127)),)
        kinds.append((ids, sampling))
    roomy = Qwen(tiny_v1, byte_tokenizer, block_tokens=4)
    expected = [roomy.generate_ids([ids], SamplingParams(**s))[0].choices for ids, s in kinds]

    # 32 run at a time, of some 50 tokens: blocks for a quarter of that.
    tight = Qwen(tiny_v1, byte_tokenizer, block_tokens=4, cache_tokens=400, max_waiting=5000, step_tokens=64)
    wrong: list[int] = []

    def client(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            batch = [rng.randrange(len(kinds)) for _ in range(10)]
            streams = [tight.engine.submit(request(tight, kinds[i][0], **kinds[i][1])) for i in batch]
            for i, stream in zip(batch, streams, strict=True):
                if rng.random() < 0.15:
                    stream.close()
                elif stream.result().choices != expected[i]:
                    wrong.append(i)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert wrong == []
    settle(lambda: idle(tight))
    stats = tight.engine.stats()
    assert stats.scheduler.preemptions > 20
    assert stats.blocks.hit_tokens > 1000
    assert stats.blocks.free + stats.blocks.cached == 100


def test_a_shared_beginning_is_computed_once(tiny_v1, byte_tokenizer):
    greedy = SamplingParams(temperature=0, max_tokens=2)
    qwen = Qwen(tiny_v1, byte_tokenizer, block_tokens=4)
    first = qwen.generate_ids([list(range(28))], greedy)[0]
    again = qwen.generate_ids([[*range(28), 77]], greedy)[0]
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 28)
    fresh = Qwen(tiny_v1, byte_tokenizer, block_tokens=4).generate_ids([[*range(28), 77]], greedy)[0]
    assert fresh.choices == again.choices
    longer = qwen.generate_ids([list(range(40))], greedy)[0]  # past the training length: another NTK factor
    assert longer.usage.cached_tokens == 0


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


def test_event_loops_get_what_threads_get(tiny_v1, byte_tokenizer):
    qwen = Qwen(tiny_v1, byte_tokenizer)
    prompts = [[i, i + 1, i + 2] for i in range(12)]
    expected = [c.text for c in qwen.generate_ids(prompts, SAMPLED)]

    async def read(stream: Stream) -> str:
        return "".join([delta.text async for delta in stream])

    async def all_of_them() -> list[str]:
        made = [
            request(
                qwen,
                ids,
                **{
                    k: getattr(SAMPLED, k)
                    for k in ("temperature", "top_p", "seed", "max_tokens", "repetition_penalty")
                },
            )
            for ids in prompts
        ]
        return await asyncio.gather(*(read(qwen.engine.submit(r)) for r in made))

    assert asyncio.run(all_of_them()) == expected


def test_a_cancelled_task_frees_its_blocks(scripted, byte_tokenizer):
    qwen = Qwen(scripted(b"a" * 4000, prompt_length=1), byte_tokenizer)

    async def leave() -> None:
        stream = qwen.engine.submit(request(qwen, [1], max_tokens=4000))
        seen = asyncio.Event()

        async def read() -> None:
            async for _ in stream:
                seen.set()

        task = asyncio.create_task(read())
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    settle(lambda: idle(qwen))
    assert qwen.model.passes < 3900


def test_closing_a_stream_stops_computing(scripted, byte_tokenizer):
    model = scripted(b"a" * 4000, prompt_length=2)
    qwen = Qwen(model, byte_tokenizer)
    stream = qwen.generate_stream("xy", max_tokens=4000)
    assert next(stream).text == "a"
    next(stream)
    stream.close()
    settle(lambda: not qwen.engine._working)
    assert model.passes < 3900
    assert list(stream) == []
    assert idle(qwen)


def test_a_failed_step_fails_its_requests_and_no_other(scripted, byte_tokenizer):
    model = scripted(b"abcdefgh", prompt_length=2)
    model.interrupt_at = 3
    qwen = Qwen(model, byte_tokenizer)
    with pytest.raises(KeyboardInterrupt):
        qwen.generate("xy", max_tokens=8)
    assert qwen.generate("xy", max_tokens=8).text == "abcdefgh"
    assert idle(qwen)


def test_bad_logits_of_one_leave_the_others(scripted, byte_tokenizer):
    """The first row of every pass is poisoned; the second request outlives the first."""
    model = scripted(b"abcdefgh", prompt_length=2)
    qwen = Qwen(model, byte_tokenizer)
    model.poison = float("nan")
    inner = model.forward

    def second_alone_is_well(tokens, batch, last=0, at=None):
        model.poison = float("nan") if len(at) == 2 else None
        return inner(tokens, batch, last, at)

    model.forward = second_alone_is_well
    with qwen.engine._lock:  # both in the first step
        pass
    started = threading.Event()
    hold = qwen.engine._computing
    hold.acquire()
    streams = [qwen.engine.submit(request(qwen, ids, max_tokens=8)) for ids in ([1, 2], [3, 4])]
    started.set()
    hold.release()
    outcomes = []
    for stream in streams:
        try:
            outcomes.append(stream.result().text)
        except QwenkitError as error:
            outcomes.append("NaN" if "NaN" in error.problem else error.problem)
    assert sorted(outcomes) in (["NaN", "abcdefgh"], ["abcdefgh", "abcdefgh"])


def test_a_full_queue_refuses_or_waits(scripted, byte_tokenizer):
    qwen = Qwen(scripted(b"a" * 200, prompt_length=1), byte_tokenizer, max_running=1, max_waiting=2)
    qwen.engine._computing.acquire()
    try:
        running = [qwen.engine.submit(request(qwen, [1], max_tokens=3))]
        settle(lambda: qwen.engine.stats().scheduler.running == 1)
        running += [qwen.engine.submit(request(qwen, [i], max_tokens=3)) for i in (2, 3)]
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            qwen.engine.submit(request(qwen, [4], max_tokens=3))
    finally:
        qwen.engine._computing.release()
    waited = qwen.generate_ids([[i] for i in range(20)], max_tokens=3)
    assert [c.text for c in waited] == ["aaa"] * 20
    assert [stream.result().text for stream in running] == ["aaa"] * 3


def test_more_choices_than_run_at_once(tiny_v1, byte_tokenizer):
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=6, n=9)
    many = Qwen(tiny_v1, byte_tokenizer, max_running=4).generate_ids([[1, 2, 3]], params)[0]
    assert many.choices == Qwen(tiny_v1, byte_tokenizer).generate_ids([[1, 2, 3]], params)[0].choices
    assert len({choice.token_ids for choice in many.choices}) == 9


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_guesses_change_no_text(tiny_v1, byte_tokenizer, temperature):
    """Repetition is made likely, so that guesses are tried; stop strings may end a text within one."""
    many = [[i, 2 * i, 7] * 8 for i in range(6)]
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=60, ignore_eos=True)
    params = replace(params, logit_bias={7: 4.0, 97: 4.0, 2: 3.0}, logprobs=1, n=2)
    found, steps = {}, {}
    for speculate in ("off", "ngram"):
        qwen = Qwen(tiny_v1, byte_tokenizer, speculate=speculate)
        found[speculate] = (
            qwen.generate_ids(many, params),
            qwen.generate_ids(many, params, stop=("aa", "\x07")),
        )
        settle(lambda qwen=qwen: idle(qwen))
        steps[speculate] = qwen.engine.stats().steps
    for plain, guessed in zip(found["off"], found["ngram"], strict=True):
        for a, b in zip(plain, guessed, strict=True):
            assert [(c.text, c.token_ids, c.stop_reason) for c in a.choices] == [
                (c.text, c.token_ids, c.stop_reason) for c in b.choices
            ]
    if (
        temperature == 0
    ):  # a drawn text follows few guesses, and one of twelve that follows none takes all steps
        assert steps["ngram"] < steps["off"]


def test_copied_text_takes_few_passes(scripted, byte_tokenizer):
    script = b"the quick brown fox. " * 10
    passes = {}
    for speculate in ("off", "ngram"):
        model = scripted(script, prompt_length=2)
        assert (
            Qwen(model, byte_tokenizer, speculate=speculate).generate("xy", max_tokens=200).text
            == script[:200].decode()
        )
        passes[speculate] = model.passes
    assert passes["off"] == 200
    assert passes["ngram"] < 60


def test_priorities_go_first(scripted, byte_tokenizer):
    qwen = Qwen(scripted(b"a" * 50, prompt_length=1), byte_tokenizer, max_running=1)
    qwen.engine._computing.acquire()
    first = qwen.engine.submit(request(qwen, [9], max_tokens=2))
    settle(lambda: qwen.engine.stats().scheduler.running == 1)
    made = {p: request(qwen, [p + 10], max_tokens=2) for p in (0, -1, 2)}
    streams = [qwen.engine.submit(r, priority=p) for p, r in made.items()]
    qwen.engine._computing.release()
    for stream in [first, *streams]:
        stream.result()
    assert sorted(made, key=lambda p: made[p].started or 0) == [2, 0, -1]


def test_an_engine_can_be_closed_and_collected(scripted, byte_tokenizer):
    qwen = Qwen(scripted(b"a" * 4000, prompt_length=1), byte_tokenizer)
    stream = qwen.generate_stream("x", max_tokens=4000)
    next(stream)
    qwen.engine.close()
    with pytest.raises(QwenkitError, match="closed"):
        list(stream)
    with pytest.raises(QwenkitError, match="closed"):
        qwen.generate("x")
    gone = weakref.ref(qwen.engine)
    del qwen, stream
    gc.collect()
    assert gone() is None


def test_a_process_ends_cleanly_in_the_middle_of_a_stream():
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from scripted_model import SPECIAL, ScriptedLM
from qwenkit.engine import Qwen
from qwenkit.text import Tokenizer
tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_tokens=SPECIAL, name="bytes")
qwen = Qwen(ScriptedLM(b"a" * 4000, 1), tokenizer)
stream = qwen.generate_stream("x", max_tokens=4000)
print(next(stream))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "")


def test_streaming_does_not_leave_inference_mode_behind(tiny, byte_tokenizer):
    stream = Qwen(tiny, byte_tokenizer).generate_stream("abc", max_tokens=5, ignore_eos=True)
    next(stream)
    assert not torch.is_inference_mode_enabled()
    stream.close()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache": "int3"}, r"kv_cache 'int3'.*int8-affine"),
        ({"kv_cache": "bf16"}, "computes in float32.*dtype='bf16'"),
        ({"cache_tokens": 0}, "cache_tokens=0"),
        ({"max_running": True}, "max_running=True"),
        ({"attention_window": [1]}, "1 entries.*2 layers"),
        ({"attention_window": 0}, "attention_window=0"),
    ],
)
def test_bad_options_are_named(tiny_qwen2, byte_tokenizer, options, message):
    with pytest.raises(RequestError, match=message):
        Qwen(tiny_qwen2, byte_tokenizer, **options)


def test_unknown_options_are_refused(tiny_qwen2, byte_tokenizer):
    with pytest.raises(TypeError, match=r"'prefill_chunk'.*step_tokens"):
        Qwen(tiny_qwen2, byte_tokenizer, prefill_chunk=3)
