"""What :conf accepts, refuses and never does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.cli.settings import KEYS, Settings
from qwenkit.core import RequestError, SamplingParams


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("temperature=0.5", {"temperature": 0.5}),
        ("temperature = 0.5 top_k= 3", {"temperature": 0.5, "top_k": 3}),
        ("ignore_eos=true", {"ignore_eos": True}),
        ("ignore_eos=False", {"ignore_eos": False}),
        ('stop=["a b", "c=d"] top_p=1', {"stop": ("a b", "c=d"), "top_p": 1}),
        ("stop=END", {"stop": ("END",)}),
        ('stop="two words"', {"stop": ("two words",)}),
        ("stop_token_ids=5", {"stop_token_ids": (5,)}),
        ("stop_token_ids=[5, 6]", {"stop_token_ids": (5, 6)}),
        ('logit_bias={"198": -5}', {"logit_bias": {198: -5}}),
        ("seed=7", {"seed": 7}),
    ],
)
def test_values(typed: str, expected: dict[str, Any]) -> None:
    settings = Settings()
    assert settings.assign(typed) == list(expected)
    assert settings.params() == SamplingParams(**expected)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("temperature", "'temperature' is no setting. Write key=value"),
        ("temperature=", "has no value"),
        ("temperature=hot", "temperature='hot' is out of range"),
        ("temperature=-1", "out of range"),
        ("temperature=__import__('os')", "out of range"),
        ("temprature=1", "Did you mean temperature?"),
        ("max_new_tokens=5", "Here it is max_tokens."),
        ("do_sample=False", "temperature=0"),
        ("n=2", "There is no setting 'n'."),
        ("max_window_size=0", "max_window_size=0 is out of range"),
        ("max_window_size=1.5", "max_window_size=1.5 is out of range"),
        ("ignore_eos=1", "Write true or false"),
        ('logit_bias={"a": 1}', "token id"),
        ("logit_bias=[1]", "token id"),
        ("stop=[1]", "non-empty string"),
        ("stop_token_ids=x", "out of range"),
    ],
)
def test_refused_as_a_whole(typed: str, message: str) -> None:
    settings = Settings()
    settings.assign("top_p=0.5")
    with pytest.raises(RequestError, match=message.replace("(", r"\(").replace("?", r"\?")):
        settings.assign(f"top_k=9 {typed}")
    assert settings.params() == SamplingParams(top_p=0.5)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(RequestError) as error:
        Settings().assign("zzz=1")
    assert all(key in error.value.remedy for key in KEYS)


def test_null_undoes_a_change() -> None:
    settings = Settings(SamplingParams(temperature=0.2))
    settings.assign("temperature=0.9 max_window_size=50")
    settings.assign("temperature=null max_window_size=None")
    assert settings.params().temperature == 0.2
    assert settings.max_window_size is None


@given(st.text())
def test_any_text_either_applies_or_is_refused(typed: str) -> None:
    settings = Settings()
    try:
        settings.assign(typed)
    except RequestError:
        assert settings.changed == {}


@given(st.lists(st.text(min_size=1), min_size=1), st.floats(0, 100), st.integers(0, 2**31))
def test_json_values_arrive_unchanged(stops: list[str], temperature: float, top_k: int) -> None:
    settings = Settings()
    settings.assign(f"stop={json.dumps(stops)} temperature={json.dumps(temperature)} top_k={top_k}")
    assert settings.params() == SamplingParams(stop=tuple(stops), temperature=temperature, top_k=top_k)
