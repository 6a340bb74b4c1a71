"""Stop strings in a stream against a search in the whole text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import RequestError
from qwenkit.text import StopMatcher


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Text before the stop that starts first; the shortest of those that start there."""
    found = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    start, _, stop = min(found)
    return text[:start], stop


def tail_that_may_stop(text: str, stops: list[str]) -> str:
    """The longest end of `text` that is the beginning of a stop."""
    for start in range(len(text)):
        if any(stop.startswith(text[start:]) for stop in stops):
            return text[start:]
    return ""


STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


@settings(max_examples=800, deadline=None)
@given(pieces=st.lists(st.text("ab", max_size=5), max_size=12), stops=STOPS)
def test_any_split_equals_the_whole_text(pieces, stops):
    matcher = StopMatcher(stops)
    text, shown, stop = "", "", None
    for piece in pieces:
        new, stop = matcher.push(piece)
        text += piece
        shown += new
        if stop is not None:
            break
        # No part of a stop has leaked, and nothing is held back for no reason.
        before, undecided = oracle(text, stops)
        assert before.startswith(shown)
        if undecided is None:
            assert shown == text.removesuffix(tail_that_may_stop(text, stops))
    shown += matcher.finish()
    expected, expected_stop = oracle(text, stops)
    assert (shown, matcher.matched) == (expected, expected_stop)
    assert stop in (None, expected_stop)
    if expected_stop is not None:
        assert matcher.push("more") == ("", expected_stop)


@settings(max_examples=300, deadline=None)
@given(
    before=st.text(max_size=20),
    stop=st.text(min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_real_text(before, stop, cuts):
    text = before + stop + "tail"
    borders = sorted({0, len(text), *(c for c in cuts if c < len(text))})
    matcher = StopMatcher([stop])
    shown = "".join(matcher.push(text[a:b])[0] for a, b in pairwise(borders))
    assert shown + matcher.finish() == oracle(text, [stop])[0]
    assert matcher.matched == stop


def test_a_stop_across_token_borders_is_never_shown():
    matcher = StopMatcher(["\nObservation:"])
    assert matcher.push("Action Input: {}\nObs") == ("Action Input: {}", None)
    assert matcher.push("ervation") == ("", None)
    assert matcher.push(": leak") == ("", "\nObservation:")
    assert matcher.push("more") == ("", "\nObservation:")
    assert matcher.finish() == ""


def test_what_is_held_comes_back():
    matcher = StopMatcher(["Observation:"])
    assert matcher.push("I Obs") == ("I ", None)
    assert matcher.push("erve") == ("Observe", None)
    assert matcher.push(" Obs") == (" ", None)
    assert matcher.finish() == "Obs"
    assert matcher.matched is None


def test_an_earlier_start_is_waited_for():
    for end, result in (("d", ("", "abcd")), ("x", ("a", "bc"))):
        matcher = StopMatcher(["abcd", "bc"])
        assert matcher.push("abc") == ("", None)
        assert matcher.push(end) == result
    matcher = StopMatcher(["abcd", "bc"])
    matcher.push("abc")
    assert (matcher.finish(), matcher.matched) == ("a", "bc")


def test_no_stops():
    matcher = StopMatcher([])
    assert matcher.push("anything") == ("anything", None)
    assert matcher.finish() == ""


def test_long_and_self_similar_stops_stay_linear():
    stop = "a" * 200_000 + "b"
    matcher = StopMatcher([stop])
    assert matcher.push("a" * 300_000) == ("a" * 100_000, None)
    assert matcher.push("b") == ("", stop)


@pytest.mark.parametrize("stops", ["abc", [""], ["a", None], [b"a"]])
def test_bad_stops(stops):
    with pytest.raises(RequestError, match="stop="):
        StopMatcher(stops)
