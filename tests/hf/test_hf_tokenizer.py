"""The original's tokenizer interface; ids and texts of tests/data/text.json come from the original."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken, AutoTokenizer

from qwenkit.core import Message, QwenkitError, RequestError, TokenizerError
from qwenkit.hf import QWenTokenizer
from qwenkit.text import chatml

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "text.json").read_text(encoding="utf-8"))


def test_golden_ids_and_texts(tokenizer):
    assert len(GOLDEN["tokenizer"]) > 10
    for case in GOLDEN["tokenizer"]:
        text = case["text"]
        assert tokenizer(text)["input_ids"] == case["ids_specials_parsed"]
        assert tokenizer.encode(text) == case["ids_specials_parsed"]
        assert tokenizer.encode(text, allowed_special=set()) == case["ids_plain"]
        assert tokenizer.encode(text, split_special_tokens=True) == case["ids_plain"]
        assert tokenizer.decode(case["ids_plain"]) == case["decoded"]


def test_allowed_and_disallowed(tokenizer):
    text = 'print("<|extra_0|>")<|endoftext|>'
    some = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    assert some == [1350, 9639, 91, 15460, 62, 15, 91, 82598, 151643]
    assert tokenizer.tokenize(text, allowed_special={"<|endoftext|>"})[-1] == "<|endoftext|>"
    with pytest.raises(
        ValueError, match=r"^Encountered text corresponding to disallowed special token '<\|extra_0\|>'"
    ):
        tokenizer(text, allowed_special={"<|endoftext|>"}, disallowed_special="all")
    with pytest.raises(ValueError, match=r"^Encountered text corresponding to disallowed special token"):
        tokenizer(text, allowed_special=set(), disallowed_special=["<|endoftext|>"])
    allowed = {"<|endoftext|>", "<|extra_0|>"}
    assert tokenizer(text, allowed_special=allowed, disallowed_special="all")["input_ids"][-1] == 151643
    with pytest.raises(ValueError, match="no_such"):
        tokenizer(text, allowed_special={"<|no_such|>"})


def test_ids_tokens_and_attributes(tokenizer):
    assert (tokenizer.eod_id, tokenizer.im_start_id, tokenizer.im_end_id) == (151643, 151644, 151645)
    assert len(tokenizer) == tokenizer.vocab_size == 151851
    assert len(tokenizer.special_tokens) == 208
    assert tokenizer.special_tokens["<|extra_204|>"] == 151850
    assert tokenizer.mergeable_ranks[b"!"] == 0
    assert len(tokenizer.get_vocab()) == 151643
    tokens = tokenizer.convert_ids_to_tokens([108386, 151645])
    assert tokens == ["你好".encode(), "<|im_end|>"]
    assert tokenizer.convert_ids_to_tokens(108386) == "你好".encode()
    assert tokenizer.convert_ids_to_tokens([108386, 151645], skip_special_tokens=True) == tokens[:1]
    assert tokenizer.convert_tokens_to_ids(tokens) == [108386, 151645]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 151645
    assert tokenizer.convert_tokens_to_ids(b"no such token") is None
    assert tokenizer.convert_tokens_to_string(tokens) == "你好<|im_end|>"
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token) == (None,) * 4
    assert tokenizer.model_max_length == 8192
    assert not tokenizer.is_fast


def test_decode_errors_and_special_tokens(tokenizer):
    assert tokenizer.decode([51461]) == " \ufffd"
    assert tokenizer.decode([51461], errors="ignore") == " "
    assert tokenizer.decode([51461, 117]) == " 根"
    assert tokenizer.decode([9707, 151645, 151643], skip_special_tokens=True) == "Hello"
    assert tokenizer.decode([9707, 151645]) == "Hello<|im_end|>"
    assert tokenizer.decode(9707) == "Hello"
    assert tokenizer.decode(torch.tensor([9707, 1879]), clean_up_tokenization_spaces=True) == "Hello world"
    assert tokenizer.batch_decode([[9707], [1879]]) == ["Hello", " world"]
    with pytest.raises(TokenizerError, match="151900"):
        tokenizer.decode([151900])


def test_misspelt_keywords_are_refused(tokenizer):
    with pytest.raises(TypeError, match="alowed_special"):
        tokenizer("x", alowed_special=set())
    with pytest.raises(TypeError, match="return_offsets_mapping"):
        tokenizer("x", return_offsets_mapping=True)
    with pytest.raises(TypeError, match="error"):
        tokenizer.decode([1], error="ignore")


def test_padding_as_the_batch_recipe_does(chat_folder):
    tokenizer = AutoTokenizer.from_pretrained(
        chat_folder, pad_token="<|extra_0|>", eos_token="<|endoftext|>", padding_side="left"
    )
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (151646, 151643)
    batch = tokenizer(["Hello world", "你好"], padding="longest", return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == [[9707, 1879], [151646, 108386]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]
    right = tokenizer(["Hello world", "你好"], padding="max_length", max_length=3, padding_side="right")
    assert right["input_ids"] == [[9707, 1879, 151646], [108386, 151646, 151646]]
    cut = tokenizer("Hello world Hello", truncation=True, max_length=2)
    assert cut["input_ids"] == [9707, 1879]
    assert tokenizer("Hello", " world")["input_ids"] == [9707, 1879]
    with pytest.raises(ValueError, match="pad"):
        AutoTokenizer.from_pretrained(chat_folder)(["a b c", "a"], padding=True)


def test_unknown_special_tokens_are_refused(tokenizer, chat_folder):
    with pytest.raises(ValueError, match="unknown special tokens is not supported"):
        AutoTokenizer.from_pretrained(chat_folder, pad_token="<pad>")
    with pytest.raises(ValueError, match="regular tokens is not supported"):
        tokenizer.add_tokens(["new"])
    with pytest.raises(ValueError, match="unknown special tokens is not supported"):
        tokenizer.add_tokens([AddedToken("<think>")], special_tokens=True)
    assert tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra_1|>"]}) == 0


def test_save_and_load_again(chat_folder, tmp_path, vocabulary):
    tokenizer = AutoTokenizer.from_pretrained(chat_folder, pad_token="<|extra_0|>", padding_side="left")
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "qwen.tiktoken").read_bytes() == vocabulary.read_bytes()
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is QWenTokenizer
    assert (again.pad_token_id, again.padding_side, again.model_max_length) == (151646, "left", 8192)
    text = "<|im_start|>user\n 12 你好🙂<|im_end|>"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.chat_template == tokenizer.chat_template


def test_extended_vocabulary(chat_folder, tmp_path, vocabulary):
    """Reference: tokenizer section 6; the tokens of that example, in its order."""
    import base64

    words = ["一只猫", "只猫", "是一只猫", "我是一只猫", "你是一只猫", "他是一只猫"]
    order = ["只猫", "一只猫", "是一只猫", "我是一只猫", "你是一只猫", "他是一只猫"]
    assert set(words) == set(order)
    extra = tmp_path / "extra.tiktoken"
    extra.write_text(
        "".join(f"{base64.b64encode(w.encode()).decode()} {151851 + i}\n" for i, w in enumerate(words))
    )
    tokenizer = AutoTokenizer.from_pretrained(chat_folder, extra_vocab_file=str(extra))
    assert len(tokenizer) == 151857
    ids = tokenizer.encode("我是一只猫")
    assert ids == [151854]
    # The original dropped tokens of an extended vocabulary here; docs/differences.md.
    assert tokenizer.decode([*ids, 151645], skip_special_tokens=True) == "我是一只猫"
    tokenizer.save_pretrained(tmp_path / "saved")
    extra.unlink()
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.encode("我是一只猫") == [151854]


def test_a_folder_without_its_vocabulary_says_so(tmp_path, chat_folder):
    (tmp_path / "config.json").write_text((chat_folder / "config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text((chat_folder / "tokenizer_config.json").read_text())
    with pytest.raises((QwenkitError, OSError), match=r"qwen\.tiktoken|tokenizer"):
        AutoTokenizer.from_pretrained(tmp_path)


def test_pickle(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("Hello <|im_end|>") == tokenizer.encode("Hello <|im_end|>")
    assert again.decode([108386]) == "你好"


@given(st.text())
def test_round_trip_is_that_of_the_core(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == tokenizer.core.decode(
        tokenizer.core.encode(text, allow_special=True)
    )


# -- chat template -----------------------------------------------------------------------------------

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a <|im_end|> \n你好"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": " c"},
]


def test_chat_template_is_chatml_and_cannot_be_broken_out_of(tokenizer):
    messages = [Message(m["role"], m["content"]) for m in CHAT]
    want = chatml.encode(tokenizer.core, messages)
    assert want.count(tokenizer.im_end_id) == len(CHAT)
    out = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)
    assert out["input_ids"] == want
    assert out["attention_mask"] == [1] * len(want)
    assert tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False) == want
    tensors = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    assert tensors["input_ids"].tolist() == [want]
    text = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert text == chatml.render(messages)


@pytest.mark.parametrize("ask", [False, True])
@pytest.mark.parametrize("first", [0, 1])
def test_jinja_text_equals_our_own(tokenizer, ask, first):
    kwargs = {"add_generation_prompt": ask, "tokenize": False}
    ours = tokenizer.apply_chat_template(CHAT[first:], **kwargs)
    jinja = tokenizer.apply_chat_template(CHAT[first:], chat_template=tokenizer.chat_template, **kwargs)
    assert ours == jinja
    plain = [{**m, "content": m["content"].replace("<|im_end|>", "")} for m in CHAT[first:]]
    ids = tokenizer.apply_chat_template(plain, add_generation_prompt=ask)["input_ids"]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(plain, **kwargs)


def test_chat_template_in_batches_and_open_ended(chat_folder):
    tokenizer = AutoTokenizer.from_pretrained(chat_folder, pad_token="<|extra_0|>", padding_side="left")
    batch = tokenizer.apply_chat_template(
        [CHAT, CHAT[1:2]], add_generation_prompt=True, padding=True, return_tensors="pt"
    )
    for row, mask, chat in zip(batch["input_ids"], batch["attention_mask"], [CHAT, CHAT[1:2]], strict=True):
        alone = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert row[mask.bool()].tolist() == alone
    text = tokenizer.apply_chat_template(CHAT[:3], continue_final_message=True, tokenize=False)
    assert text.endswith("assistant\nb")


@pytest.mark.parametrize(
    ("chat", "kwargs"),
    [
        (CHAT, {"tools": [{"type": "function"}]}),
        (CHAT, {"documents": [{"text": "x"}]}),
        (CHAT, {"enable_thinking": True}),
        (CHAT, {"add_generation_prompt": True, "continue_final_message": True}),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], {}),
        ([{"role": "assistant", "content": "", "tool_calls": [1]}], {}),
        ([{"role": "tool", "content": "x"}], {}),
        ([], {}),
    ],
)
def test_what_chatml_cannot_express_is_refused(tokenizer, chat, kwargs):
    with pytest.raises(RequestError):
        tokenizer.apply_chat_template(chat, **kwargs)
