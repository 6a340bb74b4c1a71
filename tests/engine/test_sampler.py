"""Each rule against an independent statement of it, and draws against the distribution they should have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import SamplingParams
from qwenkit.engine import sampler
from qwenkit.engine.sampler import Sampler

NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def make(prompt: tuple[int, ...] = (0,), choice: int = 0, **params: object) -> Sampler:
    return Sampler(SamplingParams(**{**NEUTRAL, "seed": 1, **params}), prompt, choice)


def row(size: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


def restated_kept(scores: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Sort everything, cut from below; plain numpy in float64."""
    scores = scores.astype(np.float64)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    if top_k:
        order = [i for i in order if scores[i] >= scores[order[min(top_k, len(order)) - 1]]]
    p = np.exp(scores[order] - scores[order[0]])
    p /= p.sum()
    before = np.concatenate(([0.0], np.cumsum(p)[:-1]))
    order = [i for i, b in zip(order, before, strict=True) if b < top_p]
    best = math.exp(scores[order[0]])
    return {i for i in order if math.exp(scores[i]) >= min_p * best}


def kept(scores: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> set[int]:
    floor = sampler.truncation_floor(scores, top_k, top_p, min_p)
    return set((scores >= floor).nonzero().squeeze(1).tolist())


@pytest.mark.parametrize("top_k", [0, 1, 7, 300, 5000])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 1e-9])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 1.0])
@pytest.mark.parametrize(("size", "scale"), [(50, 3.0), (1500, 3.0), (9000, 0.1)])
def test_what_is_kept_equals_a_full_sort(top_k, top_p, min_p, size, scale):
    """The third shape is so flat that no prefix of the best covers the nucleus: the exact way must act."""
    scores = row(size, size, scale)
    ours, restated = kept(scores, top_k, top_p, min_p), restated_kept(scores.numpy(), top_k, top_p, min_p)
    # float32 and float64 sums may place the very last token of a nucleus differently
    assert len(ours ^ restated) <= (1 if 1e-6 < top_p < 1 and len(restated) > 1000 else 0)


def test_equal_scores_are_kept_or_cut_together():
    scores = torch.tensor([1.0, 5.0, 3.0, 3.0, 3.0, 0.0])
    assert kept(scores, top_k=2) == {1, 2, 3, 4}
    assert kept(scores, top_p=0.8) == {1, 2, 3, 4}  # masses .70 .09 .09 .09: the third reaches .8
    assert kept(scores, top_k=2, top_p=0.8) == {1, 2, 3, 4}
    assert kept(scores, top_p=0.69) == {1}
    assert kept(torch.zeros(5000), top_p=0.3) == set(range(5000))


def test_padding_at_minus_infinity_is_never_kept():
    scores = torch.cat((row(20, 2), torch.full((20,), -torch.inf)))
    assert max(kept(scores, top_p=0.999999)) < 20
    assert max(kept(scores, top_k=30, top_p=0.9999)) < 20
    assert {sampler.draw(scores, -math.inf, u) < 20 for u in np.linspace(0, 1 - 2**-53, 50)} == {True}


@pytest.mark.parametrize("seed", range(4))
def test_kept_and_penalized_as_transformers_does(seed):
    processors = pytest.importorskip("transformers").generation.logits_process
    logits = row(2000, seed, 1.5)
    seen = torch.randint(0, 2000, (60,), generator=torch.Generator().manual_seed(seed))
    theirs = processors.RepetitionPenaltyLogitsProcessor(1.3)(seen[None], logits[None].clone())
    ours = sampler.apply_repetition_penalty(logits, seen.unique(), 1.3)
    torch.testing.assert_close(ours, theirs[0])
    for warper in (
        processors.TemperatureLogitsWarper(0.7),
        processors.TopKLogitsWarper(400),
        processors.TopPLogitsWarper(0.9),
        processors.MinPLogitsWarper(0.02),
    ):
        theirs = warper(seen[None], theirs)
    ours = sampler.apply_temperature(ours, 0.7)
    floor = sampler.truncation_floor(ours, 400, 0.9, 0.02)
    probabilities = ours.masked_fill(ours < floor, -torch.inf).softmax(0)
    assert 5 < int((probabilities > 0).sum()) < 400
    torch.testing.assert_close(probabilities, theirs[0].softmax(0))


def test_top_k_above_the_vocabulary_and_each_warper_alone_as_transformers_does():
    processors = pytest.importorskip("transformers").generation.logits_process
    logits = row(700, 5)
    for warper, arguments in (
        (processors.TopKLogitsWarper(9999), {"top_k": 9999}),
        (processors.TopKLogitsWarper(3), {"top_k": 3}),
        (processors.TopPLogitsWarper(0.8), {"top_p": 0.8}),
        (processors.TopPLogitsWarper(0.9999), {"top_p": 0.9999}),
        (processors.MinPLogitsWarper(0.3), {"min_p": 0.3}),
    ):
        theirs = set((warper(None, logits[None].clone())[0] > -torch.inf).nonzero().squeeze(1).tolist())
        assert kept(logits, **arguments) == theirs


def test_penalties_count_the_prompt_only_for_repetition():
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5])
    s = make((0, 0, 1), repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    for token in (2, 2):  # pretend two tokens were emitted
        s._adjusted(logits)
        s._seen.add(token)
        s._made.add(token)
    # 0: 2/2; 1: -2*2; 2: 1/2 - 0.25 - 2*0.5; 3: untouched
    torch.testing.assert_close(s._adjusted(logits), torch.tensor([1.0, -4.0, -0.75, 0.5]))
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.5]


def test_a_tally_grows_and_counts():
    tally = sampler._Tally((5, 5, 9), torch.device("cpu"))
    for token in range(100):
        tally.add(token)
    held = dict(zip(tally.ids.tolist(), tally.counts.tolist(), strict=True))
    assert held == {token: {5: 3.0, 9: 2.0}.get(token, 1.0) for token in range(100)}


def test_bias_acts_before_penalties_and_forces_or_bans():
    logits = row(300, 7)
    best = int(logits.argmax())
    assert make(logit_bias={17: 100.0}).choose(logits) == 17
    assert all(make(logit_bias={best: -100.0}, seed=i).choose(logits * 3) != best for i in range(50))
    biased = make((4,), logit_bias={4: 10.0}, repetition_penalty=2.0)
    assert biased._adjusted(torch.zeros(6)).tolist() == [0, 0, 0, 0, 5.0, 0]


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"top_k": 1}, {"temperature": 1e-40}])
def test_greedy_is_the_argmax(params):
    for seed in range(20):
        logits = row(400, seed)
        assert make(**params).choose(logits) == int(logits.argmax())


def test_greedy_with_penalties_takes_the_best_of_the_penalized():
    s = make((1,), temperature=0.0, repetition_penalty=4.0)
    assert s.choose(torch.tensor([1.0, 3.0, 0.9])) == 0
    assert s.choose(torch.tensor([1.0, 3.0, 0.9])) == 2


@pytest.mark.parametrize("temperature", [1e-4, 0.3, 1.0, 5.0, 1e4])
def test_temperature_is_a_division_up_to_a_shift(temperature):
    logits = row(100, 3)
    expected = torch.softmax(logits.double() / temperature, 0)
    actual = torch.softmax(sampler.apply_temperature(logits, temperature).double(), 0)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


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
    allowed = sorted(restated_kept(scaled, full["top_k"], full["top_p"], full["min_p"]))
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


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=40), st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_cumulated_probability(values, uniform):
    scores = torch.tensor(values)
    token = sampler.draw(scores, -math.inf, uniform)
    p = np.exp(scores.numpy() - scores.numpy().max()).astype(np.float64)
    assert p[token] > 0
    assert p[:token].sum() / p.sum() <= uniform + 1e-6
    assert p[: token + 1].sum() / p.sum() >= uniform - 1e-6


def test_draw_at_the_upper_edge_takes_a_token_with_mass():
    scores = torch.tensor([0.0, 1.0, -200.0, -torch.inf])
    assert sampler.draw(scores, -math.inf, 1.0) == 1  # one more than can be drawn


def test_log_probabilities_are_natural_and_sorted():
    logits = row(300, 9)
    exact = logits.double().numpy() - math.log(np.exp(logits.double().numpy()).sum())
    value, top = sampler.log_probabilities(logits, 42, 3)
    assert value == pytest.approx(exact[42], abs=1e-5)
    assert [token for token, _ in top] == np.argsort(-exact)[:3].tolist()
    assert [v for _, v in top] == pytest.approx(sorted(exact, reverse=True)[:3], abs=1e-5)
    assert sampler.log_probabilities(logits, 0, 0)[1] == []
    assert len(sampler.log_probabilities(logits, 0, 999)[1]) == 300


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_logits_are_an_error_with_a_remedy_for_their_row_alone(bad):
    logits = torch.zeros(3, 50)
    assert sampler.bad_rows(logits) == {}
    logits[1, 7] = logits[1, 9] = bad
    (found,) = sampler.bad_rows(logits).items()
    assert found[0] == 1
    assert "2 NaN or infinite" in found[1].problem
    assert "dtype" in found[1].remedy


def test_large_finite_logits_are_fine():
    assert sampler.bad_rows(torch.full((2, 4), 3e38)) == {}


def test_no_function_changes_its_input():
    logits = row(100, 1)
    before = logits.clone()
    s = make((1, 2), logit_bias={3: 1.0}, repetition_penalty=1.2, presence_penalty=1.0, top_p=0.9, top_k=20)
    for _ in range(5):
        s.choose(logits)
    assert torch.equal(logits, before)
