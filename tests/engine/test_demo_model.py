"""The real demo model through the facade."""

from __future__ import annotations

import pytest

from qwenkit.core import Infill, SamplingParams
from qwenkit.engine import Qwen

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def demo() -> Qwen:
    return Qwen.load(dtype="float32")


def test_it_answers_and_stops(demo):
    reply, history = demo.chat("What is 2 + 3? Answer with the number only.", temperature=0)
    assert reply.strip().rstrip(".") == "5"
    reply, _ = demo.chat("And twice that? The number only.", history, temperature=0)
    assert "10" in reply
    assert "<|im" not in reply


def test_streams_concatenate_and_seeds_repeat(demo):
    deltas = list(demo.chat_stream("写一句关于狐狸的话，用一个表情符号。", seed=4, max_tokens=40))
    text = "".join(map(str, deltas))
    assert text == deltas[-1].completion.text
    assert text == demo.chat("写一句关于狐狸的话，用一个表情符号。", seed=4, max_tokens=40)[0]
    assert "\ufffd" not in text


def test_a_mixed_batch_equals_its_single_runs(demo):
    prompts = ["The capital of France is", "def add(a, b):\n", "1, 2, 3, " * 40]
    together = demo.generate(prompts, temperature=0, max_tokens=24)
    assert [c.text for c in together] == [
        demo.generate(p, temperature=0, max_tokens=24).text for p in prompts
    ]
    assert together[0].text.startswith(" Paris")


def test_rows_without_text_are_masked(demo):
    assert len(demo.tokenizer) < demo.config.vocab_size
    hot = demo.generate("x", temperature=100.0, seed=0, max_tokens=60, ignore_eos=True)
    assert len(hot.token_ids) == 60


def test_it_fills_in_the_middle(demo):
    gap = Infill("def multiply(a, b):\n    return", "\n\n\nprint(multiply(3, 4))  # 12\n")
    request = demo.prepare(gap, SamplingParams(temperature=0, max_tokens=20))
    text = demo.engine.submit(request).result().text
    assert text.strip().startswith("a * b")
