"""What a request may say, and how defaults fill it."""

from __future__ import annotations

import pytest

from qwenkit.core import GenerationConfig, RequestError, SamplingParams


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": True}, "temperature=True"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_p": 1.01}, "from|above"),
        ({"top_k": 1.5}, "whole number"),
        ({"min_p": 2}, "min_p=2"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"presence_penalty": 2.5}, "presence_penalty=2.5"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": "5"}, "max_tokens='5'"),
        ({"n": 0}, "n=0"),
        ({"logprobs": -1}, "logprobs=-1"),
        ({"stop": ["a", ""]}, "stop contains ''"),
        ({"stop_token_ids": [-1]}, "stop_token_ids=-1"),
        ({"logit_bias": {5: 101}}, "logit_bias value=101"),
        ({"logit_bias": {"5": 1}}, "logit_bias token id='5'"),
    ],
)
def test_values_out_of_range_are_named_with_their_limits(given, words):
    with pytest.raises(RequestError, match=words):
        SamplingParams(**given)


def test_a_bare_stop_string_is_one_stop():
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


def test_defaults_fill_only_what_was_left_open():
    asked = SamplingParams(temperature=0.0, n=3, stop=("x",))
    filled = asked.with_defaults(SamplingParams(temperature=1.0, top_p=0.8, max_tokens=512, n=9))
    assert (filled.temperature, filled.top_p, filled.max_tokens) == (0.0, 0.8, 512)
    assert (filled.n, filled.stop) == (3, ("x",))


def test_the_default_generation_config_leaves_nothing_open():
    filled = SamplingParams().with_defaults(GenerationConfig().sampling)
    assert None not in (filled.temperature, filled.top_p, filled.top_k, filled.min_p, filled.max_tokens)


@pytest.mark.parametrize(
    ("params", "greedy"),
    [({"temperature": 0}, True), ({"top_k": 1}, True), ({"temperature": 0.1}, False), ({}, False)],
)
def test_greedy(params, greedy):
    assert SamplingParams(**params).greedy is greedy
