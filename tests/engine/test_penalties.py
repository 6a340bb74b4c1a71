"""Bias and penalties against transformers and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.core import SamplingParams
from qwenkit.engine.penalties import Penalties
from qwenkit.kernels import reference_sampling as sampling


def make(prompt: tuple[int, ...] = (), **params: object) -> Penalties:
    return Penalties(SamplingParams(**{"repetition_penalty": 1.0, **params}), prompt)


def applied(penalties: Penalties, logits: torch.Tensor) -> torch.Tensor:
    edits = penalties.edits(logits)
    if edits is None:
        return logits
    ids, values = edits
    assert len(set(ids.tolist())) == len(ids)
    return logits.index_copy(0, torch.from_numpy(ids).long(), torch.from_numpy(values))


@pytest.mark.parametrize("seed", range(4))
def test_kept_and_penalized_as_transformers_does(seed):
    processors = pytest.importorskip("transformers").generation.logits_process
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2000, generator=g) * 1.5
    seen = torch.randint(0, 2000, (60,), generator=g)
    theirs = processors.RepetitionPenaltyLogitsProcessor(1.3)(seen[None], logits[None].clone())
    ours = applied(make(tuple(seen.tolist()), repetition_penalty=1.3), logits)
    torch.testing.assert_close(ours, theirs[0])
    for warper in (
        processors.TemperatureLogitsWarper(0.7),
        processors.TopKLogitsWarper(400),
        processors.TopPLogitsWarper(0.9),
        processors.MinPLogitsWarper(0.02),
    ):
        theirs = warper(seen[None], theirs)
    ours = sampling.apply_temperature(ours, 0.7)
    floor = sampling.truncation_floor(ours, 400, 0.9, 0.02)
    probabilities = ours.masked_fill(ours < floor, -torch.inf).softmax(0)
    assert 5 < int((probabilities > 0).sum()) < 400
    torch.testing.assert_close(probabilities, theirs[0].softmax(0))


def test_penalties_count_the_prompt_only_for_repetition():
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5])
    penalties = make((0, 0, 1), repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    for token in (2, 2):
        penalties.add(token)
    # 0: 2/2; 1: -2*2; 2: 1/2 - 0.25 - 2*0.5; 3: untouched
    torch.testing.assert_close(applied(penalties, logits), torch.tensor([1.0, -4.0, -0.75, 0.5]))
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.5]


def test_bias_acts_before_penalties():
    penalties = make((4,), logit_bias={4: 10.0}, repetition_penalty=2.0)
    assert applied(penalties, torch.zeros(6)).tolist() == [0, 0, 0, 0, 5.0, 0]


def test_what_nothing_is_asked_of_changes_nothing():
    penalties = make((1, 2, 3))
    penalties.add(1)
    assert penalties.edits(torch.zeros(6)) is None
    with pytest.raises(TypeError, match="resolved"):
        Penalties(SamplingParams(), ())


def restated(logits: list[float], prompt: list[int], reply: list[int], params: SamplingParams) -> list[float]:
    """Token by token, in float64."""
    scores = [logit + params.logit_bias.get(i, 0.0) for i, logit in enumerate(logits)]
    for token in {*prompt, *reply}:
        by = params.repetition_penalty or 1.0
        scores[token] = scores[token] / by if scores[token] > 0 else scores[token] * by
    for token in set(reply):
        scores[token] -= params.presence_penalty + params.frequency_penalty * reply.count(token)
    return scores


tokens = st.lists(st.integers(0, 39), max_size=60)


@given(
    tokens, tokens, tokens, st.sampled_from([1.0, 1.25, 0.5]), st.sampled_from([0.0, 0.75]),
    st.sampled_from([0.0, -0.5]), st.dictionaries(st.integers(0, 39), st.integers(-9, 9)),
)  # fmt: skip
def test_any_text_is_penalized_as_counted_by_hand(
    prompt, reply, taken_back, repetition, presence, frequency, bias
):
    params = SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency, logit_bias=bias
    )
    logits = torch.arange(-10, 10, 0.5).bfloat16()
    penalties = Penalties(params, tuple(prompt))
    for token in reply:
        penalties.add(token)
    for token in taken_back:
        penalties.add(token)
    for token in reversed(taken_back):
        penalties.undo(token)
    expected = restated(logits.tolist(), prompt, reply, params)
    assert applied(penalties, logits.float()).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("penalty", [5e-324, 1e-45, 1e-38, 1e4])
def test_penalties_of_any_size_leave_numbers(penalty):
    penalties = Penalties(SamplingParams(repetition_penalty=penalty), (1, 2, 3, 4))
    ids, values = penalties.edits(torch.tensor([0.0, 30.0, -30.0, 0.0, -torch.inf]))
    assert ids.tolist() == [1, 2, 3, 4]
    assert np.isfinite(values[:3]).all()
    assert values[3] == -np.inf, "a hole stays one"
