"""Streaming gives the same text as decoding at once, and only whole characters on the way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import TokenizerError
from qwenkit.text import StreamDecoder

# Single bytes make every kind of broken sequence; the higher ids are words and special tokens.
IDS = st.lists(st.integers(0, 255) | st.integers(0, 151850) | st.integers(151640, 151650), max_size=60)
CHINESE = st.text(st.characters(min_codepoint=0x80, exclude_categories=["Cs"])).map(
    lambda text: list(text.encode())
)


def stream(tokenizer, ids, skip_special):
    decoder = StreamDecoder(tokenizer, skip_special=skip_special)
    return [decoder.push(i) for i in ids], decoder.finish()


@settings(max_examples=500, deadline=None)
@given(ids=IDS, skip_special=st.booleans())
def test_the_pieces_join_to_the_decoded_text(qwen, ids, skip_special):
    pieces, rest = stream(qwen, ids, skip_special)
    assert "".join(pieces) + rest == qwen.decode(ids, skip_special=skip_special)


@settings(max_examples=300, deadline=None)
@given(encoded=CHINESE)
def test_valid_text_is_never_mangled_on_the_way(qwen, encoded):
    id_of_byte = {qwen.token_bytes(i)[0]: i for i in range(256)}
    pieces, rest = stream(qwen, [id_of_byte[byte] for byte in encoded], True)
    assert "".join(pieces) == bytes(encoded).decode()
    assert rest == ""


def test_an_unfinished_character_waits(qwen):
    assert stream(qwen, [51461, 117], True) == ([" ", "根"], "")
    assert stream(qwen, [51461], True) == ([" "], "\ufffd")


def test_special_tokens_show_when_asked(qwen):
    assert stream(qwen, [9707, 151645], True) == (["Hello", ""], "")
    assert stream(qwen, [9707, 151645], False) == (["Hello", "<|im_end|>"], "")


def test_padding_ids_are_an_error(qwen):
    with pytest.raises(TokenizerError, match="151900"):
        StreamDecoder(qwen).push(151900)
