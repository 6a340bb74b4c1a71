"""Reading texts and conversations as windows of tokens."""

from __future__ import annotations

import json

import pytest

from qwenkit.core import Message, RequestError
from qwenkit.eval import read_windows
from qwenkit.text.chatml import encode_training


def test_a_text_is_cut_into_windows_and_nothing_is_lost(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("0123456789", encoding="utf-8")
    windows = read_windows([path], tokenizer, length=4)
    assert [bytes(w.ids).decode() for w in windows] == ["0123", "4567", "89"]
    assert {w.source for w in windows} == {str(path)}
    assert len(read_windows([path, path], tokenizer, length=4, limit=2)) == 4


def test_a_single_token_at_the_end_predicts_nothing(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("01234", encoding="utf-8")
    assert [len(w.ids) for w in read_windows([path], tokenizer, length=4)] == [4]


def test_records_begin_windows_and_conversations_are_rendered(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    records = [
        {"text": "hello"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"conversations": [{"from": "user", "value": "hi"}, {"from": "assistant", "value": "ho"}]},
    ]
    path.write_text("\n".join(json.dumps(r) for r in records) + "\n\n", encoding="utf-8")
    text, first, second = read_windows([path], tokenizer, length=1000)
    assert bytes(text.ids) == b"hello"
    turns = [Message("user", "hi"), Message("assistant", "ho")]
    assert list(first.ids) == encode_training(tokenizer, turns)[0] == list(second.ids)


def test_a_line_ends_at_a_newline_only(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028two\x85three"}\n', encoding="utf-8")
    (window,) = read_windows([path], tokenizer, length=100)
    assert bytes(window.ids).decode() == "one\u2028two\x85three"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a.jsonl:2: no JSON"),
        ("[1]", r"a.jsonl:2: neither"),
        ('{"text": 3}', r"a.jsonl:2: neither"),
        ('{"messages": [{"role": "user"}]}', r"a.jsonl:2: neither"),
        ('{"messages": [{"role": "nobody", "content": "x"}]}', r"a.jsonl:2: neither"),
        ("{}", r"a.jsonl:2: neither"),
        ('{"messages": [{"role": "user", "content": 5}]}', r"a.jsonl:2: neither .* no text"),
        ("[" * 100_000, r"a.jsonl:2: no JSON"),
    ],
)
def test_a_bad_record_is_named(tokenizer, tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(RequestError, match=message):
        read_windows([path], tokenizer, length=8)


def test_files_that_cannot_be_read_are_named(tokenizer, tmp_path):
    with pytest.raises(RequestError, match=r"nowhere\.txt"):
        read_windows([tmp_path / "nowhere.txt"], tokenizer, length=8)
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"ab\xff")
    with pytest.raises(RequestError, match=r"not UTF-8 \(byte 2\)"):
        read_windows([bad], tokenizer, length=8)
    bad.write_text("x", encoding="utf-8")
    with pytest.raises(RequestError, match="no text of 2 tokens"):
        read_windows([bad], tokenizer, length=8)
    with pytest.raises(RequestError, match="Windows of 1"):
        read_windows([bad], tokenizer, length=1)
