"""tokenizer.json, vocab.json and GGUF vocabularies, with the `tokenizers` library as the other opinion."""

from __future__ import annotations

import json
import shutil
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import Message, TokenizerError
from qwenkit.text import Tokenizer, chatml
from qwenkit.text.merges import reconstruct_merges
from qwenkit.text.vocabulary import to_letters

tokenizers = pytest.importorskip("tokenizers")

SAMPLES = [
    "def f(x):\n    return x  # 注释\n\n\n\tend",
    "ﬁ Å Å e\u0301 \u1e9b\u0323 \u0344 한글 \u1112\u1161\u11ab",
    "I'm you'RE 'S 'ſ it''s don’t",
    "x² ½ Ⅷ ٣ १२३ 1234",
    "🙂👨‍👩‍👧‍👦 🇨🇳 \u200b\u200d\ufeff",
    "\x00\x01\x7f\x80\x85\xa0\u2028\u2029\u3000 a\r\n\r\nb\r c",
    "!!!\n\n...\r\n  ?\n x",
    " " * 100 + "\n" * 50 + " " * 33 + "x",
    "mixed 中文English混排，标点。Привет мир שלום عربى ไทย हिन्दी",
]


@pytest.fixture(scope="session")
def exported(qwen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    written = qwen.save_tokenizer_json(folder, chat_template="chatml", model_max_length=8192)
    assert [path.name for path in written] == ["tokenizer.json", "tokenizer_config.json"]
    return folder


@pytest.fixture(scope="session")
def other(exported):
    return tokenizers.Tokenizer.from_file(str(exported / "tokenizer.json"))


def same(qwen, other, text):
    assert other.encode(text, add_special_tokens=False).ids == qwen.encode(text, allow_special=True), text


def test_exported_ids_of_golden_texts(qwen, other, golden):
    for case in golden["tokenizer"]:
        same(qwen, other, case["text"])
    for case in golden["make_context"]:
        same(qwen, other, case["raw_text"])


@pytest.mark.parametrize("text", SAMPLES)
def test_exported_ids_of_samples(qwen, other, text):
    same(qwen, other, text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=0x2FFFF, exclude_categories=["Cs", "Cn"])))
def test_exported_ids_of_any_text(qwen, other, text):
    # Normalised before: the other library orders marks newer than Unicode 9 wrongly.
    same(qwen, other, unicodedata.normalize("NFC", text))


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from(" \t\n\r'sSlL!.-1a中é\u0301\u3000<|>")))
def test_exported_ids_where_pieces_meet(qwen, other, text):
    same(qwen, other, text)


def test_exported_special_tokens(qwen, other):
    for form, i in qwen.special_tokens.items():
        same(qwen, other, f"a{form} b")
        assert other.token_to_id(form) == i
    ids = qwen.encode("<|im_start|>user\n你好<|im_end|>", allow_special=True)
    assert other.decode(ids, skip_special_tokens=True) == qwen.decode(ids, skip_special=True) == "user\n你好"
    assert other.decode(ids, skip_special_tokens=False) == qwen.decode(ids)


def test_reading_the_export_gives_the_same_tokenizer(qwen, exported):
    back = Tokenizer.from_tokenizer_json(exported / "tokenizer.json")
    assert back.ranks == qwen.ranks
    assert back.special_tokens == qwen.special_tokens
    assert back.pretokenizer == qwen.pretokenizer
    assert back.nfc


def test_transformers_reads_the_export(qwen, exported):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    assert theirs.model_max_length == 8192
    assert (theirs.eos_token, theirs.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for text in SAMPLES:
        assert theirs.encode(text) == qwen.encode(text, allow_special=True)
    messages = [
        {"role": "user", "content": "你好\n"},
        {"role": "assistant", "content": "it's"},
        {"role": "user", "content": ""},
    ]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == chatml.render([Message(**m) for m in messages])


def test_export_of_an_extended_vocabulary(qwen, tmp_path):
    grown = qwen.with_tokens({w.encode(): 151851 + i for i, w in enumerate(["一只猫", "只猫", "是一只猫"])})
    grown.save_tokenizer_json(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("我是一只猫", "一只猫是一只猫<|im_end|>"):
        same(grown, theirs, text)
    assert Tokenizer.from_folder(tmp_path).ranks == grown.ranks
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "chat_template" not in config
    assert config["eos_token"] == "<|endoftext|>"


def test_export_of_special_tokens_in_odd_places(tmp_path):
    """The other library numbers special tokens after the regular ones unless the vocabulary lists them."""
    ranks = {bytes([b]): b + 2 for b in range(256)} | {b"ab": 300}
    tokenizer = Tokenizer(ranks, special_tokens={"<b>": 1, "<a>": 0, "<中>": 299})
    tokenizer.save_tokenizer_json(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("<a>ab中<中><b>", allow_special=True) == [0, 300, 230, 186, 175, 299, 1]
    same(tokenizer, theirs, "<a>ab中<中><b> é")
    back = Tokenizer.from_folder(tmp_path)
    assert (back.ranks, back.special_tokens) == (tokenizer.ranks, tokenizer.special_tokens)
    with pytest.raises(TokenizerError, match="'<a>' is both a special and a regular token"):
        tokenizer.with_tokens({b"<a": 301, b"<a>": 302}).save_tokenizer_json(tmp_path)


def test_a_token_that_merging_never_reaches_is_not_exported(qwen, tmp_path):
    grown = qwen.with_tokens({"是一只猫".encode(): 151851})  # 是一 merges first and leaves 只, 猫
    with pytest.raises(TokenizerError, match=r"Token 151851 .* keep the rank file"):
        grown.save_tokenizer_json(tmp_path)
    assert not list(tmp_path.iterdir())


def small_json(**changes):
    letters = ["a", "b", "Ġ", "ab"]
    content = {
        "normalizer": {"type": "NFC"},
        "added_tokens": [
            {"id": 4, "content": "<x>", "special": True},
            {"id": 5, "content": "<tool>", "special": False},
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(letters)}, "merges": ["a b"]},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = content
        for parent in parents:
            place = place[int(parent) if parent.isdigit() else parent]
        place[int(last) if last.isdigit() else last] = value
    return content


def read_small(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return Tokenizer.from_tokenizer_json(path)


def test_a_small_tokenizer_json(tmp_path):
    tokenizer = read_small(tmp_path, small_json())
    assert tokenizer.encode("ab ba<x>", allow_special=True) == [3, 2, 1, 0, 4]
    assert tokenizer.decode([3, 4, 5], skip_special=True) == "ab<tool>"
    assert read_small(tmp_path, small_json(model__merges=[["a", "b"]])).encode("ab") == [3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__type": "Unigram"}, "model.type is 'Unigram'"),
        ({"model__ignore_merges": True}, "model.ignore_merges is True"),
        ({"model__byte_fallback": True}, "byte_fallback"),
        ({"model__dropout": 0.1}, "dropout"),
        ({"model__unk_token": "<unk>"}, "unk_token"),
        ({"model__end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"model__vocab": []}, "no model with a vocabulary"),
        ({"model__vocab__ab": "3"}, "has id '3'"),
        ({"model__vocab__中": 9}, "stands for no byte"),
        ({"model__merges": ["a b c"]}, "merge 0 is 'a b c'"),
        ({"model__merges": [["a"]]}, "merge 0 is"),
        ({"model__merges": []}, "no merge makes token 3"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer 'Lowercase'"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
        ({"pre_tokenizer__pretokenizers__1__add_prefix_space": True}, "pre_tokenizer"),
        ({"pre_tokenizer__pretokenizers__0__behavior": "Removed"}, "pre_tokenizer"),
        ({"added_tokens__0__lstrip": True}, "'<x>' needs spaces"),
        ({"added_tokens__0__id": None}, "added tokens are not as expected"),
        ({"added_tokens": [7]}, "added tokens are not as expected"),
        ({"added_tokens__0__id": 3}, "shares id 3"),
    ],
)
def test_what_cannot_be_followed_exactly_is_refused(tmp_path, changes, message):
    with pytest.raises(TokenizerError, match=message):
        read_small(tmp_path, small_json(**changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"model": {"vocab"', r"tokenizer.json:1: not valid JSON"),
        ('{\n"a": 1,\n}', r"tokenizer.json:3: not valid JSON"),
        ("[]", "holds a JSON list"),
        ("{}", "no model"),
        ("[" * 100_000, "nested too deeply|not valid JSON"),
        ("version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ],
)
def test_damaged_json_is_named(tmp_path, text, message):
    with pytest.raises(TokenizerError, match=message):
        read_small(tmp_path, text)


def test_json_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b'{\n"a": "\xff"}')
    with pytest.raises(TokenizerError, match=r"tokenizer.json:2: byte 0xff is not UTF-8"):
        Tokenizer.from_tokenizer_json(path)


@pytest.fixture(scope="session")
def lists(qwen):
    """The vocabulary as GGUF and vocab.json spell it."""
    tokens = [to_letters(token) for token in qwen.ranks]
    merges = [f"{to_letters(left)} {to_letters(right)}" for left, right in reconstruct_merges(qwen.ranks)]
    return tokens, merges


def test_gguf_of_qwen25(qwen, lists):
    tokens, merges = lists
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "[PAD151647]"]
    types = [1] * len(tokens) + [3, 3, 3, 4, 5]
    tokenizer = Tokenizer.from_gguf(tokens + special, types, merges, "qwen2")
    assert tokenizer.ranks == qwen.ranks
    assert dict(tokenizer.special_tokens) == {form: 151643 + i for i, form in enumerate(special[:4])}
    assert len(tokenizer) == 151647
    assert tokenizer.encode("e\u0301") == [963]
    assert tokenizer.decode([9707, 151646, 151645], skip_special=True) == "Hello<tool_call>"
    with pytest.raises(TokenizerError, match="151647 has no text"):
        tokenizer.token_bytes(151647)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre": "llama-bpe"}, "'llama-bpe' is not known.*qwen2"),
        ({"types": [1] * 3}, "4 tokens but 3 token types"),
        ({"types": [1, 1, 1, 6]}, "token 3 .* type 6"),
        ({"types": [1, 1, 1, 1], "tokens": ["a", "b", "ab", "a"]}, "token 3 .* twice"),
        ({"merges": ["ab"]}, "merge 0 is 'ab'"),
        ({"merges": []}, "no merge makes token 2"),
    ],
)
def test_bad_gguf(change, message):
    fields = {
        "tokens": ["a", "b", "ab", "<x>"],
        "types": [1, 1, 1, 3],
        "merges": ["a b"],
        "pre": "qwen2",
    } | change
    with pytest.raises(TokenizerError, match=f"(?i){message}"):
        Tokenizer.from_gguf(fields["tokens"], fields["types"], fields["merges"], fields["pre"])


def test_gguf_with_special_tokens_first():
    tokenizer = Tokenizer.from_gguf(["<|im_end|>", "a", "Ġ", "Ġa"], [3, 1, 1, 1], ["Ġ a"], "smollm")
    assert tokenizer.encode(" a a<|im_end|>", allow_special=True) == [3, 3, 0]
    assert not tokenizer.nfc


def test_folder_with_vocab_and_merges(qwen, lists, tmp_path):
    tokens, merges = lists
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    added = {
        "151643": {"content": "<|endoftext|>", "special": True},
        "151645": {"content": "<|im_end|>", "special": True},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.ranks == qwen.ranks
    assert dict(tokenizer.special_tokens) == {"<|endoftext|>": 151643, "<|im_end|>": 151645}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"x": {}}}))
    with pytest.raises(TokenizerError, match="added_tokens_decoder"):
        Tokenizer.from_folder(tmp_path)


def test_folder_of_2023(vocabulary, qwen, tmp_path):
    shutil.copy(vocabulary, tmp_path / "qwen.tiktoken")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"model_max_length": 8192, "tokenizer_class": "QWenTokenizer"}'
    )
    (tmp_path / "tokenizer.json").write_text("damaged")  # the rank file comes first
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.special_tokens == qwen.special_tokens
    assert tokenizer.name == "qwen.tiktoken"
    renamed = qwen.with_special_names({"<|extra_0|>": "<tool>"}).with_visible(["<tool>"])
    renamed.save_tokenizer_json(tmp_path)  # its tokenizer_config.json keeps the names
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.special_tokens == renamed.special_tokens
    assert tokenizer.visible == {"<tool>"}


def test_empty_folder(tmp_path):
    with pytest.raises(TokenizerError, match=r"has no tokenizer: neither qwen\.tiktoken"):
        Tokenizer.from_folder(tmp_path)
