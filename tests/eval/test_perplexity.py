"""Perplexity and comparison against the same numbers computed from plain logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qwenkit import Qwen
from qwenkit.core import RequestError
from qwenkit.eval import Window, compare, perplexity
from qwenkit.eval.compare import divergence
from qwenkit.model import Batch
from qwenkit.text import Tokenizer

TEXTS = [b"The quick brown fox jumps over the lazy dog.", b"abc" * 40, b"xy"]
WINDOWS = [Window(str(i), tuple(text)) for i, text in enumerate(TEXTS)]


@torch.no_grad()
def log_probabilities(model: Qwen, ids: tuple[int, ...]) -> Tensor:
    """float64 [n - 1, tokens that have a text], by one dense pass."""
    logits = model.model(torch.tensor([ids]), Batch.make(1, len(ids)))[0, :-1, :259]
    return logits.double().log_softmax(-1)


def losses(model: Qwen) -> list[Tensor]:
    return [
        -log_probabilities(model, w.ids).gather(1, torch.tensor(w.ids[1:])[:, None])[:, 0] for w in WINDOWS
    ]


def test_perplexity_is_that_of_the_logits(model):
    expected = torch.cat(losses(model(1)))
    seen: list[int] = []
    found = perplexity(model(1), WINDOWS, progress=seen.append)
    assert found.tokens == len(expected) == sum(len(t) - 1 for t in TEXTS)
    assert found.loss == pytest.approx(float(expected.mean()), abs=1e-4)
    assert found.value == pytest.approx(math.exp(found.loss))
    assert found.error == pytest.approx(float(expected.std()) / len(expected) ** 0.5, rel=1e-3)
    assert seen == [len(t) for t in TEXTS]


def test_buckets_hold_the_positions_they_name(model):
    found = perplexity(model(1), WINDOWS).buckets(50)
    by_window = losses(model(1))
    expected = []
    for start in (0, 50, 100):
        part = torch.cat([loss[max(0, start - 1) : start + 49] for loss in by_window])
        expected.append((start, len(part), float(part.mean())))
    assert [(start, count) for start, count, _ in found] == [(s, n) for s, n, _ in expected]
    assert [loss for *_, loss in found] == pytest.approx([loss for *_, loss in expected], abs=1e-4)


def test_changes_are_paired(model):
    a, b = perplexity(model(1), WINDOWS), perplexity(model(2), WINDOWS)
    difference = torch.cat(losses(model(2))) - torch.cat(losses(model(1)))
    change, error = b.change_from(a)
    assert change == pytest.approx(float(difference.mean().expm1()), abs=1e-4)
    assert error == pytest.approx(float(difference.std()) / len(difference) ** 0.5, rel=1e-3)
    assert a.change_from(a) == (0, 0)
    with pytest.raises(RequestError, match="the same windows"):
        a.change_from(perplexity(model(1), WINDOWS[1:]))
    with pytest.raises(RequestError, match="No text"):
        perplexity(model(1), [])


def test_comparison_is_that_of_the_logits(model):
    a, b = model(1), model(2)
    found = compare(a, b, WINDOWS)
    p = torch.cat([log_probabilities(a, w.ids) for w in WINDOWS])
    q = torch.cat([log_probabilities(b, w.ids) for w in WINDOWS])
    kl = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    assert found.tokens == len(kl)
    assert found.mean == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found.largest == pytest.approx(float(kl.max()), rel=1e-4)
    assert found.median == pytest.approx(float(kl.median()), rel=1e-4)
    assert found.median < found.p99 <= found.largest
    assert found.top1 == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert found.loss_a == pytest.approx(perplexity(a, WINDOWS).loss, abs=1e-5)
    assert found.loss_b == pytest.approx(perplexity(b, WINDOWS).loss, abs=1e-5)


def test_a_model_equals_itself(model):
    found = compare(model(1), model(1), WINDOWS)
    assert (found.mean, found.largest, found.top1) == (0, 0, 1)


def test_tokens_without_probability_cost_nothing():
    p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    q = torch.tensor([[0.25, 0.75, 0.0]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert float(divergence(p, q)) == pytest.approx(expected, rel=1e-6)


def test_other_vocabularies_are_refused(model):
    other = Qwen(
        model(1).model,
        Tokenizer(
            {bytes([255 - i]): i for i in range(256)},
            special_tokens={"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258},
            name="backwards",
        ),
    )
    with pytest.raises(RequestError, match="different vocabularies"):
        compare(model(1), other, WINDOWS)


def test_a_window_beyond_the_context_is_refused(model):
    with pytest.raises(RequestError, match="201 tokens"):
        perplexity(model(1), [Window("long", (65,) * 201)])
