"""One text: what is delivered, when, and how it ends."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_model import END, EXTRA, STOP

from qwenkit.core import Delta, SamplingParams, TokenLogprob
from qwenkit.engine.sequence import TokenSequence

PARAMS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def make(tokenizer, end_ids=(END, STOP), **params) -> TokenSequence:
    return TokenSequence(
        (1, 2), SamplingParams(**{**PARAMS, "max_tokens": 1000, **params}), tokenizer, end_ids=end_ids
    )


def feed(sequence: TokenSequence, tokens) -> list[Delta]:
    deltas = []
    for token in tokens:
        if sequence.finished:
            break
        delta = sequence.accept(token)
        if delta is not None:
            deltas.append(delta)
    return deltas


def check(sequence: TokenSequence, deltas: list[Delta], tokenizer) -> None:
    """What must hold of every stream."""
    assert "".join(d.text for d in deltas) == sequence.text
    assert tuple(t for d in deltas for t in d.token_ids) == sequence.token_ids
    assert [d.finish_reason is not None for d in deltas] == [False] * (len(deltas) - 1) + [True]
    assert all(d.text for d in deltas[:-1])
    assert tokenizer.decode(sequence.token_ids, skip_special=True).startswith(sequence.text.rstrip("\ufffd"))


@settings(max_examples=300, deadline=None)
@given(
    st.text("ab好🙂 \n", min_size=1, max_size=30),
    st.lists(st.text("ab好🙂\n", min_size=1, max_size=4), max_size=4),
    st.data(),
)
def test_a_stop_string_ends_the_text_and_never_leaks(byte_tokenizer, text, stops, data):
    """One byte a token: every stop crosses borders, and characters arrive in parts."""
    tokens = list(text.encode())
    end = data.draw(st.sampled_from(["token", "length"]))
    sequence = make(byte_tokenizer, stop=tuple(stops), max_tokens=len(tokens) if end == "length" else 1000)
    deltas = feed(sequence, [*tokens, STOP])
    found = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if found:
        at, _, stop = min(found)
        assert (sequence.text, sequence.finish_reason, sequence.stop_reason) == (text[:at], "stop", stop)
        assert sequence.token_ids == tuple(text[:at].encode())
    elif end == "token":
        assert (sequence.text, sequence.finish_reason, sequence.stop_reason) == (text, "stop", STOP)
        assert sequence.sampled == len(tokens) + 1
    else:
        assert (sequence.text, sequence.finish_reason, sequence.stop_reason) == (text, "length", None)
    if not found:
        assert sequence.token_ids == tuple(tokens)
    shown = ""
    for delta in deltas:
        shown += delta.text
        assert not any(stop in shown for stop in stops)
    check(sequence, deltas, byte_tokenizer)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*b"a\xe5\xa5\xbd\xf0\x9f\xff", EXTRA]), max_size=20))
def test_any_bytes_stream_as_they_decode(byte_tokenizer, tokens):
    sequence = make(byte_tokenizer)
    deltas = feed(sequence, [*tokens, END])
    assert sequence.text == byte_tokenizer.decode(tokens, skip_special=True)
    assert sequence.token_ids == tuple(tokens)
    check(sequence, deltas, byte_tokenizer)


def test_tokens_come_with_their_text(byte_tokenizer):
    sequence = make(byte_tokenizer, stop=("END",))
    deltas = feed(sequence, [*"a好E".encode(), EXTRA, *b"NxEND"])
    assert [(d.text, d.token_ids) for d in deltas] == [
        ("a", (97,)),
        ("好", tuple("好".encode())),
        ("ENx", (69, EXTRA, 78, 120)),
        ("", ()),
    ]
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "END")
    assert sequence.sampled == 11


def test_a_stop_decided_only_at_the_end(byte_tokenizer):
    """After "abc" the stop "bc" is there but "abcd" may still come; the length limit decides."""
    sequence = make(byte_tokenizer, stop=("abcd", "bc"), max_tokens=4)
    feed(sequence, b"xabc")
    assert (sequence.text, sequence.stop_reason) == ("xa", "bc")
    assert sequence.token_ids == tuple(b"xa")


@pytest.mark.parametrize("ignore", [False, True])
def test_ignore_eos_keeps_only_the_stops_of_the_caller(byte_tokenizer, ignore):
    sequence = make(byte_tokenizer, ignore_eos=ignore, stop_token_ids=(66,))
    feed(sequence, [65, END, 65, 66, 65])
    assert sequence.token_ids == ((65, END, 65) if ignore else (65,))
    assert sequence.stop_reason == (66 if ignore else END)
    assert sequence.text == ("AA" if ignore else "A")


def test_max_tokens_counts_every_token(byte_tokenizer):
    sequence = make(byte_tokenizer, max_tokens=2)
    feed(sequence, "好".encode())
    assert (sequence.text, sequence.finish_reason, sequence.sampled) == ("\ufffd", "length", 2)
    with pytest.raises(RuntimeError):
        sequence.accept(1)


def test_the_token_that_ends_has_its_log_probability_apart(byte_tokenizer):
    sequence = make(byte_tokenizer, logprobs=0)
    score = TokenLogprob(END, b"<end>", -0.5, ())
    last = sequence.accept(END, score)
    assert (last.text, last.token_ids, last.logprobs, last.end_logprob) == ("", (), (), score)
    held = make(byte_tokenizer, logprobs=0, stop=("abcd", "bc"))
    feed(held, b"xabc")
    assert held.accept(END, score).end_logprob is None  # a stop string ended it before


def test_logprobs_go_with_their_tokens(byte_tokenizer):
    sequence = make(byte_tokenizer, logprobs=2, stop=("b",), temperature=0.0)
    logits = torch.zeros(260)
    logits[97], logits[98], logits[99] = 5.0, 4.0, 3.0
    delta = sequence.advance(logits)
    assert delta is not None
    assert delta.logprobs is not None
    (entry,) = delta.logprobs
    assert (entry.token_id, entry.token_bytes) == (97, b"a")
    assert entry.logprob == pytest.approx(float(logits.log_softmax(0)[97]))
    assert [(i, b) for i, b, _ in entry.top] == [(97, b"a"), (98, b"b")]
    logits[97] = 0.0
    assert sequence.advance(logits).logprobs == ()  # the stop's own token is not part of the result
    assert sequence.choice().logprobs == (entry,)
    assert make(byte_tokenizer).choice().logprobs is None
