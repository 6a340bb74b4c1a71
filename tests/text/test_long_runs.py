"""Text that breaks naive tokenizers: long runs of anything, and the cutting of whitespace."""

from __future__ import annotations

import unicodedata

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import TokenizerError
from qwenkit.text import Tokenizer
from qwenkit.text.normalize import to_nfc
from qwenkit.text.pretokenize import QWEN, SMOLLM, Pretokenizer, pretokenizer_of_pattern

N = 1_000_000
M = 200_000  # where more would only take longer
SPACES = " \t\n\r\v\f\x85\xa0\u2028\u3000"
# Every class the expressions tell apart, with some whose class is easily mistaken.
CHARS = SPACES + "aB中é" + "1²Ⅷ" + "!'.$\u0301\u200b\x1c" + "s"


def engine(pretokenizer: Pretokenizer) -> tiktoken.Encoding:
    """tiktoken, where every run of letters of a small alphabet is one token: ids show the pieces."""
    tokens = {bytes([b]) for b in range(256)}
    for space in SPACES:
        for length in range(1, 9):
            tokens.add((space * length).encode())
            tokens.add((space * length + "\n").encode())
            tokens.add(("!" + space * length).encode())
    ranks = {token: i for i, token in enumerate(sorted(tokens, key=lambda t: (len(t), t)))}
    return tiktoken.Encoding("pieces", pat_str=pretokenizer.pattern, mergeable_ranks=ranks, special_tokens={})


ENGINES = {id(p): engine(p) for p in (QWEN, SMOLLM)}


def runs() -> st.SearchStrategy[str]:
    run = st.text(st.sampled_from(SPACES), min_size=1, max_size=9)
    return st.lists(run | st.text(st.sampled_from(CHARS), max_size=3), max_size=8).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=runs(), limit=st.integers(1, 6), pretokenizer=st.sampled_from([QWEN, SMOLLM]))
def test_dividing_changes_no_id(text, limit, pretokenizer):
    plain = ENGINES[id(pretokenizer)]
    ids = []
    for part, whole in pretokenizer.divide(text, limit):
        assert part
        ids += plain._encode_single_piece(part) if whole else plain.encode_ordinary(part)
    assert ids == plain.encode_ordinary(text)


@settings(max_examples=400, deadline=None)
@given(text=runs(), limit=st.integers(1, 6))
def test_dividing_changes_no_piece(text, limit):
    """The same against the expression itself, by another engine."""
    regex = pytest.importorskip("regex")
    parts = list(QWEN.divide(text, limit))
    pieces = []
    for part, whole in parts:
        pieces += [part] if whole else regex.findall(QWEN.pattern, part)
    assert pieces == regex.findall(QWEN.pattern, text)


@settings(max_examples=100, deadline=None)
@given(text=runs(), limit=st.integers(1, 6))
def test_real_vocabulary(qwen, text, limit):
    ids = []
    for part, whole in QWEN.divide(text, limit):
        ids += qwen.encode_piece(part.encode()) if whole else qwen._encoding.encode_ordinary(part)
    assert ids == qwen._encoding.encode_ordinary(text)


@pytest.mark.parametrize(
    "text",
    [
        " " * N,
        "\t" * N,
        "\n" * N,
        "\r\n" * (M // 2),
        " \t\n\u3000" * (N // 4),
        "\u3000" * N + "x",
        "!" + "\n" * (M // 2) + " " * (M // 2) + "x",
        "x" + "\n" * M + "y",
        "a" * N,
        "中" * N,
        "!" * N,
        " !" * (M // 2),
        "1" * M,
        "'s" * (M // 2),
        "<" * M,
        "<|im_end|" * (M // 9),
        (" " * 4095 + "x") * (M // 4096),
        (" " * 4095 + "\n") * (M // 4096),
    ],
    ids=lambda text: f"{text[:5]!r}..{text[-2:]!r}",
)
def test_a_million_characters(qwen, text):
    assert qwen.decode(qwen.encode(text, allow_special=True)) == text


def test_very_many_combining_marks(qwen):
    """Python's own normalisation would need minutes: it sorts marks by insertion."""
    below, above = "\u0316", "\u0301"
    assert qwen.decode(qwen.encode("z" + (above + below) * (M // 2))) == "ź" + below * (M // 2) + above * (
        M // 2 - 1
    )
    assert qwen.decode(qwen.encode("!" + "\u0f73" * M)) == "!" + "\u0f71" * M + "\u0f72" * M


def test_very_many_surrogates(qwen):
    assert qwen.decode(qwen.encode("\ud83d" * M)) == "\ufffd" * M


MARKS = [chr(c) for c in range(0x110000) if unicodedata.combining(chr(c))] + ["\u0344", "\u0f73", "\u0f81"]


def test_marks_are_found_by_the_search_for_symbols():
    assert not [mark for mark in MARKS if mark.isalnum() or mark.isspace() or mark == "_"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(MARKS) | st.sampled_from("aé!中\u1100\u1161"), min_size=250, max_size=600).map(
        "".join
    )
)
def test_normal_form_is_the_standard_one(text):
    assert to_nfc(text) == unicodedata.normalize("NFC", text)
    run = "e" + "".join(c for c in text if c in set(MARKS)) * 2 + "e"
    assert to_nfc(run) == unicodedata.normalize("NFC", run)


def test_an_unknown_expression_refuses_long_runs():
    ranks = {bytes([b]): b for b in range(256)}
    pretokenizer = pretokenizer_of_pattern(r"\s+(?!\S)|\s+|\S+")
    tokenizer = Tokenizer(ranks, special_tokens={}, pretokenizer=pretokenizer)
    assert tokenizer.encode(" " * 5) == [32] * 5
    with pytest.raises(TokenizerError, match="5000 whitespace characters in a row"):
        tokenizer.encode("a" + " " * 5000)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from(CHARS + "\u1100\u1161\u11a8\u212a\ud800<|im_start>"), max_size=300))
def test_the_fewest_tokens_are_never_too_many(qwen, text):
    assert qwen.fewest_tokens(text) <= len(qwen.encode(text))


def test_the_fewest_tokens_are_found_where_tokens_are_longest(qwen):
    assert qwen.fewest_tokens(" " * (128 * 50)) == len(qwen.encode(" " * (128 * 50))) == 50
    assert qwen.fewest_tokens("") == 0
