"""Draws have the distribution they should, and a text is the same alone, in a batch and with drafts."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import QwenkitError, SamplingParams
from qwenkit.engine.sampler import Rows, Sampler, choose, log_probabilities
from qwenkit.engine.vocabulary import Vocabulary
from qwenkit.kernels import reference_sampling as sampling

NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def make(prompt: tuple[int, ...] = (0,), choice: int = 0, **params: object) -> Sampler:
    return Sampler(SamplingParams(**{**NEUTRAL, "seed": 1, **params}), prompt, choice)


def row(size: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"top_k": 1}, {"temperature": 1e-40}])
def test_greedy_is_the_argmax(params):
    for seed in range(20):
        logits = row(400, seed)
        assert make(**params).choose(logits) == int(logits.argmax())


def test_greedy_with_penalties_takes_the_best_of_the_penalized():
    s = make((1,), temperature=0.0, repetition_penalty=4.0)
    assert s.choose(torch.tensor([1.0, 3.0, 0.9])) == 0
    assert s.choose(torch.tensor([1.0, 3.0, 0.9])) == 2


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 1.5, "top_p": 0.9},
    ],
)
def test_draws_have_the_distribution(params):
    """Pearson's chi-square with a fixed seed; the bound is the 99.9 % quantile (Wilson-Hilferty)."""
    logits = row(12, 11, 1.2)
    full = {**NEUTRAL, **params}
    scaled = logits.numpy().astype(np.float64) / full["temperature"]
    scores = sampling.apply_temperature(logits, full["temperature"])
    floor = sampling.truncation_floor(scores, full["top_k"], full["top_p"], full["min_p"])
    allowed = (scores >= floor).nonzero().squeeze(1).tolist()
    expected = np.exp(scaled[allowed])
    expected /= expected.sum()
    s, draws = make(seed=5, **params), 6000
    counts = np.bincount([s.choose(logits) for _ in range(draws)], minlength=12)
    assert counts[allowed].sum() == draws
    statistic = float((((counts[allowed] - draws * expected) ** 2) / (draws * expected)).sum())
    k = len(allowed) - 1
    assert statistic < k * (1 - 2 / (9 * k) + 3.09 * math.sqrt(2 / (9 * k))) ** 3


def test_same_seed_same_tokens_other_seed_or_choice_others():
    rows = [row(500, i) for i in range(30)]

    def run(**arguments: object) -> list[int]:
        s = make(**arguments)
        return [s.choose(r) for r in rows]

    assert run(seed=3) == run(seed=3)
    assert len({tuple(run(seed=s, choice=c)) for s in (0, 1, -1, 2**63) for c in (0, 1)}) == 8
    assert run(seed=None) != run(seed=None)


def test_no_function_changes_its_input():
    logits = row(100, 1)
    before = logits.clone()
    s = make((1, 2), logit_bias={3: 1.0}, repetition_penalty=1.2, presence_penalty=1.0, top_p=0.9, top_k=20)
    for _ in range(5):
        s.choose(logits)
    assert torch.equal(logits, before)


def test_bias_forces_or_bans():
    logits = row(300, 7)
    best = int(logits.argmax())
    assert make(logit_bias={17: 100.0}).choose(logits) == 17
    assert all(make(logit_bias={best: -100.0}, seed=i).choose(logits * 3) != best for i in range(50))


rules = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.0]),
        "top_p": st.sampled_from([1.0, 0.8]),
        "top_k": st.sampled_from([0, 3]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "frequency_penalty": st.sampled_from([0.0, 0.5]),
        "seed": st.integers(0, 99),
    }
)
FEW = 12


def said(history: list[int]) -> torch.Tensor:
    """What a model says after two words: half the time much the same."""
    return row(FEW, hash(tuple(history[-2:])) % 50, 2.0).bfloat16()


@settings(max_examples=60)
@given(st.lists(rules, min_size=1, max_size=5), st.integers(0, 9999))
def test_a_text_is_the_same_alone_and_in_a_batch_with_drafts(params, seed):
    random = Random(seed)
    alone = []
    for p in params:
        sampler, text = make((0, 1), **p), [0, 1]
        for _ in range(14):
            text.append(sampler.choose(said(text)))
        alone.append(text)
    samplers, texts = [make((0, 1), **p) for p in params], [[0, 1] for _ in params]
    while any(len(text) < 16 for text in texts):
        turns, logits, taking_part = [], [], []
        for i, text in enumerate(texts):
            if len(text) >= 16 or random.random() < 0.2:
                continue
            drafts = alone[i][len(text) :][: random.randint(0, 4)]
            if drafts and random.random() < 0.5:
                drafts[-1] = random.randrange(FEW)
            turns.append((samplers[i], Rows(len(logits), drafts)))
            logits += [said(text + drafts[:k]) for k in range(len(drafts) + 1)]
            taking_part.append(text)
        if turns:
            for text, run in zip(taking_part, choose(turns, torch.stack(logits)), strict=True):
                text += run
    assert [text[:16] for text in texts] == alone


def test_texts_may_share_a_row():
    logits = row(500, 3)[None]
    together = choose([(make(choice=i), Rows(0)) for i in range(20)], logits)
    assert together == [[make(choice=i).choose(logits[0])] for i in range(20)]
    assert len({tokens[0] for tokens in together}) > 1


def test_only_tokens_are_chosen_and_listed(byte_tokenizer):
    vocabulary = Vocabulary(byte_tokenizer, 272)
    logits = torch.zeros(1, 272).bfloat16()
    logits[0, 260:] = 50.0
    logits[0, 261] = torch.nan  # in the padding nobody minds
    assert choose([(make(temperature=0.0), Rows(0))], logits, vocabulary) == [[0]]
    chosen = choose([(make(seed=i), Rows(0)) for i in range(200)], logits, vocabulary)
    assert all(tokens[0] < 260 for tokens in chosen)
    ((value, best),) = log_probabilities(logits, [(0, 9, 300)], vocabulary)
    assert value == pytest.approx(-math.log(260))
    assert [token for token, _ in best] == list(range(260))
    assert log_probabilities(logits, [], vocabulary) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_logits_are_an_error_with_a_remedy_for_their_text_alone(byte_tokenizer, bad):
    vocabulary = Vocabulary(byte_tokenizer, 272)
    logits = torch.zeros(4, 272)
    logits[1, 7] = logits[1, 9] = bad
    turns = [(make(temperature=0.0), rows) for rows in (Rows(0), Rows(1), Rows(2, (0,)), Rows(0, (5,)))]
    first, second, third, fourth = choose(turns, logits, vocabulary)
    assert (first, third, fourth) == ([0], [0, 0], [0])  # a bad row behind a wrong draft is never looked at
    assert isinstance(second, QwenkitError)
    assert "2 NaN or infinite logits of 260" in second.problem
    assert "dtype" in second.remedy
    if bad != -math.inf:  # which without a vocabulary marks what is no token
        with pytest.raises(QwenkitError, match="of 272"):
            make().choose(logits[1])
