"""Ids and text against the original tokenizer."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import TokenizerError
from qwenkit.text import Tokenizer

ORDINARY = [
    ("你好", [108386]),
    ("Hello world", [9707, 1879]),
    (" Hello", [21927]),
    ("\n", [198]),
    ("\n\n", [271]),
    (" ", [220]),
    ("system", [8948]),
    ("user", [872]),
    ("assistant", [77091]),
    ("You are a helpful assistant.", [2610, 525, 264, 10950, 17847, 13]),
    ("Observation:", [37763, 367, 25]),
    ("Observation:\n", [37763, 367, 510]),
    ("Observation", [37763, 367]),
    ("Human:", [33975, 25]),
    ("Thought:", [84169, 25]),
    ("Action:", [2512, 25]),
    ("Final Answer:", [19357, 21806, 25]),
    ("A", [32]),
    ("B", [33]),
    ("C", [34]),
    ("D", [35]),
    (" A", [362]),
    ("1234567", [16, 17, 18, 19, 20, 21, 22]),
    ("I'm", [40, 2776]),
    ("IT'S", [952, 13272]),
    ("don't", [15007, 944]),
    ("e\u0301", [963]),
    ("a\r\nb", [64, 319, 65]),
    ("   x", [256, 856]),
    ("🙂", [145080]),
    ("我是一只猫", [35946, 99639, 91680, 100472]),
    ("<|im_start|>", [27, 91, 318, 4906, 91, 29]),
    ('print("<|endoftext|>")', [1350, 9639, 91, 8691, 723, 427, 91, 82598]),
    ("\ud800", [5691]),
    ("", []),
]


@pytest.mark.parametrize(("text", "ids"), ORDINARY)
def test_ids_of_the_reference(qwen, text, ids):
    assert qwen.encode(text) == ids


def test_all_golden_texts(qwen, golden):
    assert len(golden["tokenizer"]) == 268
    for case in golden["tokenizer"]:
        assert qwen.encode(case["text"]) == case["ids_plain"], case["text"]
        assert qwen.encode(case["text"], allow_special=True) == case["ids_specials_parsed"], case["text"]
        assert qwen.decode(case["ids_plain"]) == case["decoded"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Panda", ["P", "anda"]),
        (" Pandas", [" Pand", "as"]),
        ("你好，世界！123 456", ["你好", "，", "世界", "！", "1", "2", "3", " ", "4", "5", "6"]),
    ],
)
def test_pieces_of_the_reference(qwen, text, pieces):
    assert [qwen.token_bytes(i).decode() for i in qwen.encode(text)] == pieces


def test_single_bytes_stand_in_gpt2_order(qwen):
    order = [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173]
    assert [qwen.token_bytes(i) for i in range(256)] == [bytes([b]) for b in order]


def test_special_tokens_of_2023(qwen):
    assert len(qwen.special_tokens) == 208
    assert len(qwen) == 151851
    assert (qwen.end_of_text_id, qwen.im_start_id, qwen.im_end_id) == (151643, 151644, 151645)
    assert qwen.special_tokens["<|extra_0|>"] == 151646
    assert qwen.special_tokens["<|extra_204|>"] == 151850


def test_special_forms_are_text_unless_allowed(qwen):
    text = 'print("<|extra_0|>")<|endoftext|>'
    plain = [1350, 9639, 91, 15460, 62, 15, 91, 82598]
    assert qwen.encode(text, allow_special={"<|endoftext|>"}) == [*plain, 151643]
    assert qwen.encode(text, allow_special="<|endoftext|>") == [*plain, 151643]
    assert qwen.encode('print("<|endoftext|>")', allow_special=True) == [1350, 445, 151643, 899]
    assert not set(qwen.encode(text)) & set(qwen.special_tokens.values())
    assert qwen.encode(text, allow_special=()) == qwen.encode(text)


def test_unknown_special_form_is_an_error(qwen):
    with pytest.raises(TokenizerError, match=r"no special token '<\|extra_205\|>'"):
        qwen.encode("x", allow_special=["<|extra_205|>"])


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("<|im_endstarxo0>\n e\u0338"), max_size=40))
def test_user_text_never_becomes_control(qwen, text):
    assert not set(qwen.encode(text)) & set(qwen.special_tokens.values())


def test_surrogate_pairs_are_joined(qwen):
    assert qwen.encode("\ud83d\ude42 \udc00") == qwen.encode("🙂 \ufffd")


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_decoding_gives_the_normalised_text_back(qwen, text):
    import unicodedata

    assert qwen.decode(qwen.encode(text)) == unicodedata.normalize("NFC", text)
    everything = qwen.encode(text, allow_special=True)
    assert qwen.decode(everything) == unicodedata.normalize("NFC", text)


def test_decoding_invalid_utf8(qwen):
    assert qwen.decode([51461]) == " \ufffd"
    assert qwen.decode([51461], errors="ignore") == " "
    assert qwen.decode([51461, 117]) == " 根"
    with pytest.raises(UnicodeDecodeError):
        qwen.decode([51461], errors="strict")


def test_skip_special_leaves_out_special_tokens_only(qwen):
    ids = [151644, 108386, 151645, 151646, 151643]
    assert qwen.decode(ids, skip_special=True) == "你好"
    assert qwen.decode(ids) == "<|im_start|>你好<|im_end|><|extra_0|><|endoftext|>"


@pytest.mark.parametrize("token_id", [151851, 151935, -1, 10**9])
def test_ids_without_text_are_named(qwen, token_id):
    with pytest.raises(TokenizerError, match=f"id {token_id} has no text.*0 to 151850"):
        qwen.decode([108386, token_id])


def test_visible_special_tokens_survive_skipping(qwen):
    renamed = qwen.with_special_names({"<|extra_0|>": "<tool>"}).with_visible(["<tool>"])
    ids = renamed.encode("<tool>x<|im_end|>", allow_special=True)
    assert ids == [151646, 87, 151645]
    assert renamed.decode(ids, skip_special=True) == "<tool>x"
    assert "<|extra_0|>" not in renamed.special_tokens
    assert qwen.decode(ids, skip_special=True) == "x"


@pytest.mark.parametrize(
    "names",
    [
        {"<|extra_0|>": "<|im_end|>"},
        {"<|extra_0|>": ""},
        {"nope": "x"},
        {"<|extra_0|>": "x", "<|extra_1|>": "x"},
    ],
)
def test_bad_special_names(qwen, names):
    with pytest.raises(TokenizerError):
        qwen.with_special_names(names)


def test_special_names_can_be_swapped(qwen):
    swapped = qwen.with_special_names({"<|extra_0|>": "<|extra_1|>", "<|extra_1|>": "<|extra_0|>"})
    assert swapped.encode("<|extra_0|><|extra_1|>", allow_special=True) == [151647, 151646]


def test_the_longest_special_form_wins():
    ranks = {bytes([b]): b for b in range(256)}
    tokenizer = Tokenizer(ranks, special_tokens={"<a>": 256, "<a>b": 257})
    assert tokenizer.encode("<a>bc<a>", allow_special=True) == [257, ord("c"), 256]


def test_pickling(qwen):
    copy = pickle.loads(pickle.dumps(qwen))
    assert copy.encode("Hello 你好 <|im_end|>", allow_special=True) == [9707, 220, 108386, 220, 151645]
    assert len(copy) == len(qwen)


def test_special_tokens_may_come_first():
    """As in SmolLM2: specials at 0, ranks after them, and not every byte has a token."""
    letters = [bytes([b]) for b in range(32, 127)]
    ranks = {token: i + 3 for i, token in enumerate([*letters, b"ab", b"abc"])}
    tokenizer = Tokenizer(
        ranks, special_tokens={"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}, nfc=False
    )
    assert tokenizer.encode("<|im_end|>abc", allow_special=True) == [2, 99]
    assert tokenizer.end_of_text_id == 0
    assert len(tokenizer) == 100
    assert tokenizer.decode([99, 2], skip_special=True) == "abc"
    with pytest.raises(TokenizerError, match=r"byte b'\\xc3'"):
        tokenizer.encode("é")


def test_two_tokens_cannot_share_an_id():
    with pytest.raises(TokenizerError, match="share"):
        Tokenizer({b"a": 0, b"b": 0}, special_tokens={})
    with pytest.raises(TokenizerError, match="share"):
        Tokenizer({b"a": 0, b"b": 1}, special_tokens={"<x>": 1})
    with pytest.raises(TokenizerError):
        Tokenizer({}, special_tokens={})
