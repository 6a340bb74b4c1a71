"""The chat format against the original's prompts and labels."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import Message, RequestError, ToolCall
from qwenkit.text import chatml


def user(text):
    return Message("user", text)


def assistant(text):
    return Message("assistant", text)


def system(text):
    return Message("system", text)


CONVERSATION = [user("a"), assistant("b"), user("你好")]
CONVERSATION_IDS = [
    *[151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198],
    *[151644, 872, 198, 64, 151645, 198, 151644, 77091, 198, 65, 151645, 198],
    *[151644, 872, 198, 108386, 151645, 198, 151644, 77091, 198],
]


def test_the_reference_prompt(qwen):
    assert chatml.encode(qwen, CONVERSATION) == CONVERSATION_IDS
    assert chatml.render(CONVERSATION) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    )


def test_all_golden_contexts(qwen, golden):
    assert len(golden["make_context"]) == 40
    dropped = 0
    for case in golden["make_context"]:
        history = [(asked, answered) for asked, answered in case["history"]]
        context = chatml.make_context(qwen, case["query"], history, case["system"], case["max_window_size"])
        assert context.text == case["raw_text"]
        assert context.token_ids == case["token_ids"]
        kept = (context.text.count("<|im_start|>assistant\n") - 1) if "im_start" not in str(history) else None
        if kept is not None:
            assert context.dropped_turns == len(history) - kept
        dropped += context.dropped_turns
    assert dropped > 0


def test_the_window_is_strict_and_never_splits_a_turn(qwen):
    history = [("old", "x"), ("a", "b")]
    # system block 10 ids, a turn of one-token texts 12 ids: with 22 it does not fit, with 23 it does.
    assert chatml.make_context(qwen, "q", history, max_window_size=22).dropped_turns == 2
    assert chatml.make_context(qwen, "q", history, max_window_size=23).dropped_turns == 1
    assert chatml.make_context(qwen, "q", history, max_window_size=35).dropped_turns == 0
    assert chatml.make_context(qwen, "q", history, max_window_size=None).dropped_turns == 0
    # A long turn hides all older ones, however short.
    assert (
        chatml.make_context(qwen, "q", [("a", "b"), ("x " * 99, "y")], max_window_size=60).dropped_turns == 2
    )


def test_the_query_is_never_cut(qwen):
    context = chatml.make_context(qwen, "word " * 500, [("a", "b")], max_window_size=40)
    assert context.text.count("word") == 500
    assert context.dropped_turns == 0


def test_context_equals_the_messages(qwen):
    context = chatml.make_context(qwen, "你好", [("a", "b")])
    assert context.token_ids == CONVERSATION_IDS
    assert context.text == chatml.render(CONVERSATION)
    other = chatml.make_context(qwen, "q", default_system="You are Qwen.")
    assert other.text.startswith("<|im_start|>system\nYou are Qwen.<|im_end|>")


def test_an_empty_system_prompt_is_kept(qwen):
    assert chatml.render([system(""), user("q")]).startswith("<|im_start|>system\n<|im_end|>\n")
    assert chatml.make_context(qwen, "q", system="").text.startswith("<|im_start|>system\n<|im_end|>\n")


def test_raw_format(qwen):
    context = chatml.make_context(qwen, "1+1=<|endoftext|>", chat_format="raw")
    assert context.token_ids == [16, 10, 16, 28, 151643]
    with pytest.raises(RequestError, match="no history"):
        chatml.make_context(qwen, "q", [("a", "b")], chat_format="raw")
    with pytest.raises(RequestError, match="chat_format='alpaca'"):
        chatml.make_context(qwen, "q", chat_format="alpaca")


def test_stop_tokens(qwen):
    assert chatml.stop_token_ids(qwen) == (151645, 151644, 151643)
    assert chatml.stop_token_ids(qwen, "raw") == (151643,)


CONTENTS = st.text(max_size=12) | st.sampled_from(
    ["<|im_end|>", "\n<|im_start|>system\n", "\nx", " x", "e\u0301"]
)
CONVERSATIONS = st.lists(
    st.builds(Message, st.sampled_from(["user", "assistant"]), CONTENTS), min_size=1, max_size=5
)


@settings(max_examples=200, deadline=None)
@given(messages=CONVERSATIONS, first=st.none() | CONTENTS, prompt=st.booleans())
def test_control_tokens_are_ours_alone(qwen, messages, first, prompt):
    messages = [*([] if first is None else [system(first)]), *messages]
    ids = chatml.encode(qwen, messages, add_generation_prompt=prompt)
    turns = len(messages) + (first is None)
    assert ids.count(151644) == turns + prompt
    assert ids.count(151645) == turns
    import unicodedata

    text = chatml.render(messages, add_generation_prompt=prompt)
    assert unicodedata.normalize("NFC", qwen.decode(ids)) == unicodedata.normalize("NFC", text)


def test_continuing_the_last_answer(qwen):
    messages = [user("a"), assistant("b\nThought:")]
    assert chatml.render(messages, continue_last=True).endswith("<|im_start|>assistant\nb\nThought:")
    ids = chatml.encode(qwen, messages, continue_last=True)
    assert ids[-4:] == [65, 198, 84169, 25]
    with pytest.raises(RequestError, match="role 'user' and cannot be continued"):
        chatml.encode(qwen, [user("a")], continue_last=True)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "no messages"),
        ([user("a"), system("late")], "Message 1 has role 'system'"),
        ([Message("tool", "42")], "Message 0 has role 'tool'"),
        ([user("a"), Message("assistant", "", (ToolCall("f", "{}"),))], "Message 1 has tool calls"),
    ],
)
def test_what_chatml_cannot_say(qwen, messages, problem):
    with pytest.raises(RequestError, match=problem):
        chatml.render(messages)
    with pytest.raises(RequestError, match=problem):
        chatml.encode(qwen, messages)
    with pytest.raises(RequestError, match=problem):
        chatml.encode_training(qwen, messages)


@pytest.mark.parametrize(
    "default", ["You are a helpful assistant.", "", 'it\'s "x" \\n {{ y }} {% if %}\n第二行']
)
def test_the_jinja_template_gives_the_same_text(default):
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Environment(keep_trailing_newline=True).from_string(chatml.jinja_template(default))
    for messages in (
        CONVERSATION,
        [system("s\n"), user(" q ")],
        [user("{{ 1 }}"), assistant("'"), user("\n")],
    ):
        entries = [{"role": m.role, "content": m.content} for m in messages]
        text = template.render(messages=entries, add_generation_prompt=True)
        assert text == chatml.render(messages, default_system=default)
        without = template.render(messages=entries, add_generation_prompt=False)
        assert without == chatml.render(messages, default_system=default, add_generation_prompt=False) + "\n"


def test_all_golden_labels(qwen, golden):
    """The original's ids and labels, cut and padded to model_max_length as its script does."""
    assert len(golden["finetune_labels"]) == 20
    for case in golden["finetune_labels"]:
        messages = [Message(turn["from"], turn["value"]) for turn in case["conversations"]]
        ids, labels = chatml.encode_training(qwen, messages, original=True)
        length = case["model_max_length"]
        padding = max(0, length - len(ids))
        padded = ids[:length] + [151643] * padding
        assert padded == case["input_ids"]
        assert labels[:length] + [-100] * padding == case["labels"]
        assert [i != 151643 for i in padded] == case["attention_mask"]


def test_the_original_layout_of_the_reference(qwen):
    ids, labels = chatml.encode_training(
        qwen, [user("你好"), assistant("我是一个语言模型，我叫通义千问。")], original=True
    )
    answer = [
        35946,
        101909,
        102064,
        104949,
        3837,
        35946,
        99882,
        31935,
        64559,
        99320,
        56007,
        1773,
        151645,
        198,
    ]
    assert len(ids) == 34
    expected = [
        151644,
        *[-100] * 8,
        151645,
        198,
        151644,
        *[-100] * 3,
        151645,
        198,
        151644,
        *[-100] * 2,
        *answer,
    ]
    assert labels == expected


@pytest.mark.parametrize("roles", [["user", "system"], ["user", "tool"]])
def test_the_original_layout_knows_two_roles(qwen, roles):
    with pytest.raises(RequestError, match="in training data"):
        chatml.encode_training(qwen, [Message(role, "x") for role in roles], original=True)


def test_only_answers_are_learned(qwen):
    messages = [system("s"), user("<|im_end|>"), assistant("b"), user("c"), assistant("<|im_end|> d")]
    ids, labels = chatml.encode_training(qwen, messages)
    assert ids == [*chatml.encode(qwen, messages, add_generation_prompt=False), 198]
    assert len(labels) == len(ids)
    learned = [i for i, label in zip(ids, labels, strict=True) if label != chatml.IGNORED]
    assert learned == [65, 151645, *qwen.encode("<|im_end|> d"), 151645]
    assert all(label in (i, -100) for i, label in zip(ids, labels, strict=True))
    assert ids.count(151645) == 5


def test_training_ends_where_a_prompt_goes_on(qwen):
    """What the model learns to write follows exactly the prompt it will be given."""
    ids, _ = chatml.encode_training(qwen, CONVERSATION[:2])
    prompt = chatml.encode(qwen, CONVERSATION[:1])
    assert ids[: len(prompt)] == prompt
    assert ids[len(prompt) :] == [65, 151645, 198]
