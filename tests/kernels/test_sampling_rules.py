"""Each rule of choosing against an independent statement of it, and the one arithmetic against its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.kernels import reference_sampling as sampling
from qwenkit.kernels.reference_sampling import Draw


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
    floor = sampling.truncation_floor(scores, top_k, top_p, min_p)
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
    assert {sampling.draw(scores, -math.inf, u) < 20 for u in np.linspace(0, 1 - 2**-53, 50)} == {True}


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


@pytest.mark.parametrize("temperature", [1e-4, 0.3, 1.0, 5.0, 1e4])
def test_temperature_is_a_division_up_to_a_shift(temperature):
    logits = row(100, 3)
    expected = torch.softmax(logits.double() / temperature, 0)
    actual = torch.softmax(sampling.apply_temperature(logits, temperature).double(), 0)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=40), st.floats(0, 1, exclude_max=True))
def test_draw_inverts_the_cumulated_probability(values, uniform):
    scores = torch.tensor(values)
    token = sampling.draw(scores, -math.inf, uniform)
    p = np.exp(scores.numpy() - scores.numpy().max()).astype(np.float64)
    assert p[token] > 0
    assert p[:token].sum() / p.sum() <= uniform + 1e-6
    assert p[: token + 1].sum() / p.sum() >= uniform - 1e-6


def test_draw_at_the_upper_edge_takes_a_token_with_mass():
    scores = torch.tensor([0.0, 1.0, -200.0, -torch.inf])
    assert sampling.draw(scores, -math.inf, 1.0) == 1  # one more than can be drawn


def test_masses_are_exponentials():
    """Within two roundings of float32, or half a unit; nothing below."""
    scores = torch.linspace(-40, 0, 200_001)
    exact = np.exp(scores.double().numpy()) * 2.0**40
    assert (np.abs(sampling.masses(scores).numpy() - exact) <= exact * 2.0**-22 + 0.5).all()
    assert sampling.masses(torch.tensor([0.0, -28.5, -1e4, -torch.inf])).tolist() == [2**40, 0, 0, 0]


def test_the_sum_of_masses_does_not_depend_on_their_order():
    mass = sampling.masses(row(50_000, 4, 6.0).sub(40).clamp(max=0))
    assert int(mass.sum()) == int(mass.flip(0).cumsum(0)[-1]) == sum(mass.tolist())


def test_log_probabilities_are_natural_and_sorted():
    logits = row(300, 9)
    exact = logits.double().numpy() - math.log(np.exp(logits.double().numpy()).sum())
    ((value, top),) = sampling.log_probabilities(logits[None], [(0, 42, 3)])
    assert value == pytest.approx(exact[42], abs=1e-5)
    assert [token for token, _ in top] == np.argsort(-exact)[:3].tolist()
    assert [v for _, v in top] == pytest.approx(sorted(exact, reverse=True)[:3], abs=1e-5)
    assert sampling.log_probabilities(logits[None], [(0, 0, 0)])[0][1] == []
    assert len(sampling.log_probabilities(logits[None], [(0, 0, 999)])[0][1]) == 300


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_logits_are_counted_for_their_row_alone(bad):
    logits = torch.zeros(3, 50)
    draws, none = [Draw(row) for row in (2, 1, 0, 1)], torch.empty(0, dtype=torch.int32)
    assert sampling.choose(logits, draws, holes=none) == ([0, 0, 0, 0], {})
    logits[1, 7] = logits[1, 9] = bad
    assert sampling.choose(logits, draws, holes=none) == ([0, -1, 0, -1], {1: 2})
    assert sampling.choose(logits, draws, size=8, holes=torch.tensor([7])) == ([0, 0, 0, 0], {})
    assert sampling.choose(torch.full((1, 4), 3e38), [Draw(0)], holes=none) == ([0], {})
