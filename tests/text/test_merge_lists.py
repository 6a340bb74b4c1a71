"""When do merge lists and ranks mean the same? Checked against plain implementations of both."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import TokenizerError
from qwenkit.text.merges import prove_merges, reconstruct_merges


def list_bpe(text: bytes, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    """Byte-pair encoding as merge lists define it."""
    order = {pair: i for i, pair in reversed(list(enumerate(merges)))}
    pieces = [bytes([b]) for b in text]
    while found := [(order[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in order]:
        _, i = min(found)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


def rank_bpe(text: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Byte-pair encoding as ranks define it (without the look-up of the whole)."""
    pieces = [bytes([b]) for b in text]
    while found := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in ranks]:
        _, i = min(found)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces


TEXTS = [bytes(letters) for n in range(1, 7) for letters in product(b"ab", repeat=n)]


@st.composite
def merge_lists(draw) -> list[tuple[bytes, bytes]]:
    tokens = [b"a", b"b"]
    merges = []
    for _ in range(draw(st.integers(1, 6))):
        pair = (draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens)))
        if pair not in merges:
            merges.append(pair)
            if pair[0] + pair[1] not in tokens:
                tokens.append(pair[0] + pair[1])
    return merges


def ranks_of(merges: list[tuple[bytes, bytes]]) -> dict[bytes, int]:
    return {token: i for i, token in enumerate(dict.fromkeys([b"a", b"b", *(a + b for a, b in merges)]))}


@settings(max_examples=300, deadline=None)
@given(merge_lists())
def test_a_proven_list_agrees_on_every_text(merges):
    """Or, the other way round: a list that differs on any text is refused."""
    ranks = ranks_of(merges)
    try:
        prove_merges("here", ranks, merges)
    except TokenizerError:
        return
    for text in TEXTS:
        assert list_bpe(text, merges) == rank_bpe(text, ranks)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(TEXTS), max_size=8, unique=True))
def test_reconstructed_lists_are_right_or_refused(tokens):
    ranks = {token: i for i, token in enumerate(dict.fromkeys([b"a", b"b", *tokens]))}
    reachable = all(
        len(t) == 1 or len(rank_bpe(t, {k: r for k, r in ranks.items() if r < ranks[t]})) == 2 for t in ranks
    )
    if not reachable:
        with pytest.raises(TokenizerError, match="not made of two tokens"):
            reconstruct_merges(ranks)
        return
    merges = reconstruct_merges(ranks)
    prove_merges("here", ranks, merges)
    for text in TEXTS:
        assert list_bpe(text, merges) == rank_bpe(text, ranks)


@pytest.mark.parametrize(
    ("tokens", "merges", "message"),
    [
        ("a b ab", [("a", "a")], "merge 0 makes b'aa', which is no token"),
        ("a b ab bb", [("b", "b"), ("a", "b")], "makes id 2 after id 3"),
        ("a b aab ab", [("a", "ab"), ("a", "b")], "uses b'ab', which no merge made before"),
        ("a b ab abb", [("a", "b")], r"no merge makes token 3 \(b'abb'\)"),
        # Both orders exist in the list, but bytes b, c merge first, so that `ab c` never comes about.
        ("a b c bc ab abc", [("b", "c"), ("a", "b"), ("ab", "c")], r"no merge makes token 5 \(b'abc'\)"),
    ],
)
def test_refused_lists(tokens, merges, message):
    ranks = {token.encode(): i for i, token in enumerate(tokens.split())}
    with pytest.raises(TokenizerError, match=message):
        prove_merges("here", ranks, [(a.encode(), b.encode()) for a, b in merges])


def test_a_list_may_hold_every_split():
    """Converters that list all splits of a token do no harm: only one of them ever meets."""
    ranks = {token.encode(): i for i, token in enumerate(["a", "b", "c", "ab", "bc", "abc"])}
    prove_merges("here", ranks, [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc"), (b"ab", b"c")])
