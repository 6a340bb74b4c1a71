"""Reading and writing qwen.tiktoken, whole and damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from qwenkit.core import TokenizerError
from qwenkit.text import Tokenizer
from qwenkit.text.vocabulary import BYTE_LETTERS, from_letters, read_ranks, to_letters


def test_the_real_file_round_trips_byte_for_byte(vocabulary, qwen, tmp_path):
    ranks = read_ranks(vocabulary)
    assert list(ranks.values()) == list(range(151643))
    assert ranks[b"!"] == 0
    assert ranks[b"\xad"] == 255
    assert ranks[b"  "] == 256
    qwen.save_tiktoken(tmp_path / "new" / "qwen.tiktoken")
    written = (tmp_path / "new" / "qwen.tiktoken").read_bytes()
    assert (
        hashlib.sha256(written).hexdigest()
        == "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
    )
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["qwen.tiktoken"]


def test_the_published_file_is_read_as_any_other(vocabulary, tmp_path):
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(vocabulary.read_bytes() + b"\n")
    assert list(read_ranks(path).items()) == list(read_ranks(vocabulary).items())


def lines_of(vocabulary: Path) -> list[bytes]:
    return vocabulary.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: [], r"is empty"),
        (lambda lines: [b"\n", b"  \n"], r"holds no tokens"),
        (
            lambda lines: [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"],
            r"git-lfs pointer.*git lfs pull",
        ),
        (lambda lines: [*lines[:9], b"!!! 9\n", *lines[10:]], r":10: b'!!! 9' is not `base64 rank`"),
        (lambda lines: [*lines[:9], b"K\xff== 9\n", *lines[10:]], r":10: "),
        (lambda lines: [*lines[:9], b"Kg= 9\n", *lines[10:]], r":10: "),
        (lambda lines: [*lines[:9], b"Kg==\n", *lines[10:]], r":10: "),
        (lambda lines: [*lines[:9], b"Kg== x\n", *lines[10:]], r":10: "),
        (lambda lines: [*lines[:9], b"Kg== -9\n", *lines[10:]], r":10: "),
        (lambda lines: [*lines[:9], lines[8], *lines[10:]], r":10: token b'\)' appears twice"),
        (lambda lines: [*lines[:9], b"Kg== 8\n", *lines[10:]], r":10: rank 8 was already used on line 9"),
        (lambda lines: [*lines[:9], *lines[10:]], r"no token has id 9 \(the next is 10; 151642 ranks"),
        (lambda lines: lines[:1000], r"no token has id 1000 \(the next is 151643; 1000 ranks"),
        (lambda lines: [*lines[:999], lines[999][:3]], r":1000: "),
        (lambda lines: [*lines, b"AAAAAAAAAAAA 151643\n"], r"id 151643 belongs to two tokens"),
        (lambda lines: [b"\x80\x02}q\x00" * 50], r":1: "),
    ],
)
def test_damaged_files_are_named(vocabulary, tmp_path, damage, message):
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(b"".join(damage(lines_of(vocabulary))))
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_tiktoken(path)
    assert str(path) in caught.value.problem
    assert caught.value.remedy


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"Cannot read .*absent.tiktoken: No such file"):
        Tokenizer.from_tiktoken(tmp_path / "absent.tiktoken")
    with pytest.raises(TokenizerError, match="Is a directory"):
        Tokenizer.from_tiktoken(tmp_path)


def test_blank_lines_and_windows_newlines_are_read(tmp_path):
    path = tmp_path / "small.tiktoken"
    path.write_bytes(b"\r\n".join([b"YQ== 0", b"", b"Yg== 1", b"YWI= 2"]))
    assert read_ranks(path) == {b"a": 0, b"b": 1, b"ab": 2}


def test_a_small_vocabulary_brings_its_own_special_tokens(tmp_path):
    path = tmp_path / "small.tiktoken"
    path.write_bytes(b"YQ== 0\nYg== 1\nYWI= 2\n")
    tokenizer = Tokenizer.from_tiktoken(path, special_tokens={"<|endoftext|>": 3})
    assert tokenizer.encode("abba<|endoftext|>", allow_special=True) == [2, 1, 0, 3]
    with pytest.raises(TokenizerError, match=r"no special token '<\|im_end\|>'"):
        _ = tokenizer.im_end_id


def test_a_failed_write_leaves_the_old_file(qwen, tmp_path, monkeypatch):
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        qwen.save_tiktoken(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_byte_letters():
    assert to_letters(b" \n!") == "ĠĊ!"
    assert len(set(BYTE_LETTERS)) == 256
    every = bytes(range(256))
    assert from_letters(to_letters(every)) == every
    for wrong in (" ", "\xa0", "中", "\u0144", "\uffff", "\xad"):
        with pytest.raises(TokenizerError, match="stands for no byte"):
            from_letters(wrong)
