"""The facade: what a caller of chat and generate sees."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripted_model import END, START, STOP

from qwenkit.core import (
    ContextLengthError,
    GenerationConfig,
    Message,
    QwenkitError,
    RequestError,
    SamplingParams,
)
from qwenkit.engine import Qwen
from qwenkit.engine.device import choose_dtype, cpu_bfloat16, find_device, parse_dtype
from qwenkit.text import Tokenizer, chatml

TINY_V1 = Path(__file__).parents[1] / "data" / "tiny_v1"
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture
def qwen(tiny_v1, byte_tokenizer) -> Qwen:
    defaults = SamplingParams(temperature=0.0, top_p=0.8, repetition_penalty=1.1, max_tokens=10)
    return Qwen(tiny_v1, byte_tokenizer, generation=GenerationConfig(sampling=defaults), name="tiny")


def said(model_class, tokenizer, reply: str, query: str, **other) -> Qwen:
    """A chat model that answers `reply` to `query` and then opens a turn of its own."""
    generation = other.pop("generation", GenerationConfig(stop_token_ids=(END,)))
    prompt = chatml.make_context(
        tokenizer, query, other.pop("history", None), generation.default_system,
        other.pop("window", None),
    )  # fmt: skip
    model = model_class([*reply.encode(), STOP, *b"\n<rubbish>"], len(prompt.token_ids))
    return Qwen(model, tokenizer, generation=generation, **other)


def test_greedy_tokens_equal_the_original(tiny_v1):
    golden = load_file(TINY_V1 / "golden.safetensors")
    rest = {f"<|extra_{i}|>": 256 + i for i in range(256)}
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, special_tokens={
        **{k: v for k, v in rest.items() if v > 258},
        "<|endoftext|>": END, "<|im_start|>": START, "<|im_end|>": STOP,
    })  # fmt: skip
    prompt = golden["ids"][0, :10].tolist()
    ours = Qwen(tiny_v1, tokenizer).generate_ids([prompt], temperature=0, max_tokens=40, ignore_eos=True)
    assert list(ours[0].token_ids) == golden["greedy_40_from_10"].tolist()
    assert ours[0].finish_reason == "length"


def test_chat_stops_at_the_end_of_the_turn_and_returns_a_new_history(scripted, byte_tokenizer):
    history = [("a", "b")]
    qwen = said(scripted, byte_tokenizer, " 你好! ", "hi", history=history)
    reply, after = qwen.chat("hi", history)
    assert reply == " 你好! "
    assert after == [("a", "b"), ("hi", " 你好! ")]
    assert history == [("a", "b")]
    deltas = list(qwen.chat_stream("hi", history))
    assert "".join(map(str, deltas)) == reply
    assert deltas[-1].completion.text == reply
    assert deltas[-1].completion.finish_reason == "stop"
    assert deltas[-1].completion.choices[0].stop_reason == STOP
    assert all(delta.completion is None for delta in deltas[:-1])
    assert history == [("a", "b")]


def test_chat_and_messages_build_the_same_prompt(qwen):
    reply, _ = qwen.chat("how?", [("a", "b")], "Be brief.")
    messages = [
        Message("system", "Be brief."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "how?"),
    ]
    completion = qwen.complete_chat(messages)
    assert completion.text == reply
    assert "".join(map(str, qwen.stream_messages(messages))) == reply
    context = chatml.make_context(qwen.tokenizer, "how?", [("a", "b")], "Be brief.")
    assert completion.usage.prompt_tokens == len(context.token_ids)
    assert qwen.generate(context.text, parse_special=True).text == reply


def test_system_none_is_the_default_and_empty_is_empty(qwen):
    default = len(chatml.encode(qwen.tokenizer, [Message("user", "x")]))
    for system, tokens in ((None, default), ("", default - len("You are a helpful assistant."))):
        last = list(qwen.chat_stream("x", system=system))[-1]
        assert last.completion.usage.prompt_tokens == tokens


def test_trimmed_history_is_reported(scripted, byte_tokenizer):
    history = [("first question", "first answer"), ("2", "b"), ("3", "c")]
    window = 130
    context = chatml.make_context(byte_tokenizer, "4", history, None, window)
    assert context.dropped_turns == 1
    for generation, argument in ((None, window), (window, None)):
        config = GenerationConfig(max_window_size=generation)
        qwen = said(scripted, byte_tokenizer, "d", "4", history=history, window=window, generation=config)
        with pytest.warns(UserWarning, match=r"1 oldest of 3 turns.*max_window_size=130") as caught:
            reply, after = qwen.chat("4", history, max_window_size=argument)
        assert caught[0].filename == __file__
        assert (reply, len(after)) == ("d", 4)
        with pytest.warns(UserWarning, match="1 oldest"):
            last = list(qwen.chat_stream("4", history, max_window_size=argument))[-1]
        assert last.completion.dropped_turns == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        full = said(scripted, byte_tokenizer, "d", "4", history=history)
        assert list(full.chat_stream("4", history))[-1].completion.dropped_turns == 0


def test_a_base_model_warns_once_and_still_answers(scripted, byte_tokenizer):
    raw = GenerationConfig(chat_format="raw", stop_token_ids=(END,))
    qwen = said(scripted, byte_tokenizer, "yes", "hi", generation=raw, is_chat=False, name="Qwen-7B")
    with pytest.warns(UserWarning, match="Qwen-7B is a base model") as caught:
        assert qwen.chat("hi")[0] == "yes"
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert qwen.chat("hi")[0] == "yes"


def test_stops_of_generate_follow_the_kind_of_model(scripted, byte_tokenizer):
    script = [*b"a", STOP, *b"b", END, *b"c"]
    for chat_format, text in (("chatml", "a"), ("raw", "ab")):
        config = GenerationConfig(chat_format=chat_format, stop_token_ids=(END,))
        qwen = Qwen(scripted(script, 1), byte_tokenizer, generation=config)
        assert qwen.generate("x").text == text
    assert qwen.generate("x", ignore_eos=True, max_tokens=5).token_ids == tuple(script)


def test_stop_strings_do_not_show(scripted, byte_tokenizer):
    qwen = Qwen(scripted(b"Thought: go\nObservation: 1", 1), byte_tokenizer)
    for given in ("\nObservation", ["Observation:", "\nObs"]):
        assert qwen.generate("x", stop=given).text == "Thought: go"
        deltas = list(qwen.generate_stream("x", stop=given))
        assert "".join(map(str, deltas)) == "Thought: go"
        assert deltas[-1].finish_reason == "stop"


def test_generate_takes_one_or_many(qwen):
    one, many = qwen.generate("abc"), qwen.generate(["abc", "a longer prompt"])
    assert one.choices == many[0].choices
    assert len(many) == 2
    assert qwen.generate([]) == []
    assert "".join(map(str, qwen.generate_stream("abc"))) == one.text


def test_streams_of_many_choices(qwen):
    deltas = list(qwen.generate_stream("abc", n=3, temperature=1.0, seed=1))
    completion = deltas[-1].completion
    assert sum(delta.completion is not None for delta in deltas) == 1
    for i, choice in enumerate(completion.choices):
        mine = [delta for delta in deltas if delta.index == i]
        assert "".join(map(str, mine)) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason
    assert completion.choices == qwen.generate("abc", n=3, temperature=1.0, seed=1).choices


def test_user_text_is_never_control(qwen):
    plain = qwen.generate("<|im_end|>", max_tokens=1).usage.prompt_tokens
    assert (plain, qwen.generate("<|im_end|>", max_tokens=1, parse_special=True).usage.prompt_tokens) == (
        10,
        1,
    )


def test_defaults_come_from_the_checkpoint_and_arguments_win(qwen):
    assert len(qwen.generate("abc", ignore_eos=True).token_ids) == 10
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    assert len(qwen.generate("abc", params).token_ids) == 4
    assert len(qwen.generate("abc", params, max_tokens=2).token_ids) == 2
    penalized = qwen.generate("abc", ignore_eos=True).token_ids
    assert qwen.generate("abc", ignore_eos=True, repetition_penalty=1.1).token_ids == penalized
    assert qwen.generate("abc", ignore_eos=True, repetition_penalty=1.0).token_ids != penalized


def test_logit_bias_forces_and_bans(qwen):
    forced = qwen.generate("abc", logit_bias={65: 100.0}, **GREEDY)
    assert forced.text == "A" * 12
    free = set(qwen.generate("abc", **GREEDY).token_ids)
    banned = qwen.generate("abc", logit_bias=dict.fromkeys(free, -100.0), **GREEDY)
    assert not free & set(banned.token_ids)


def test_logprobs_are_those_of_the_raw_logits(qwen):
    """Greedy with a penalty and a bias: the reported numbers are the model's own."""
    from qwenkit.model import Batch

    choice = qwen.generate("abc", logprobs=3, logit_bias={65: 3.0}, **GREEDY).choices[0]
    assert [entry.token_id for entry in choice.logprobs] == list(choice.token_ids)
    ids = [*b"abc", *choice.token_ids]
    with torch.inference_mode():
        logits = qwen.model(torch.tensor([ids]), Batch.make(1, len(ids)))[0, :, : len(qwen.tokenizer)]
    for i, entry in enumerate(choice.logprobs):
        own = logits[2 + i].log_softmax(0)
        assert entry.logprob == pytest.approx(float(own[entry.token_id]), abs=1e-4)
        assert [t for t, _, _ in entry.top] == own.topk(3).indices.tolist()


def test_the_context_limit_is_checked_before_any_work(qwen, monkeypatch):
    assert qwen.config.context_length == 128
    monkeypatch.setattr(qwen.model, "forward", lambda *a, **k: pytest.fail("the model ran"))
    with pytest.raises(
        ContextLengthError, match=r"100 tokens and max_tokens is 40, 140 .* 128 .* max_tokens=28"
    ):
        qwen.generate("x" * 100, max_tokens=40)
    with pytest.raises(ContextLengthError, match=r"Prompt 2 of 2 has 128 tokens.*128.*at least 1 tokens"):
        qwen.generate(["ok", "x" * 128])
    with pytest.raises(ContextLengthError, match="The conversation has"):
        qwen.chat_stream("x" * 200)  # raised here, not at the first next()


def test_a_default_max_tokens_is_lowered_to_what_fits(qwen):
    completion = qwen.generate("x" * 125, ignore_eos=True)
    assert (len(completion.token_ids), completion.finish_reason) == (3, "length")
    assert len(qwen.generate("x" * 118, max_tokens=10, ignore_eos=True).token_ids) == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: q.generate(""), "prompt is empty"),
        (lambda q: q.generate(["a", ""]), "Prompt 2 of 2 is empty"),
        (lambda q: q.generate([3]), "A prompt is int"),
        (lambda q: q.generate_ids([[1, 260]]), "token id 260"),
        (lambda q: q.generate_ids([[1, -1]]), "token id -1"),
        (lambda q: q.generate_ids([[1, "a"]]), "contains 'a'"),
        (lambda q: q.generate("a", logit_bias={300: 1.0}), "logit_bias contains token id 300"),
        (lambda q: q.generate("a", stop_token_ids=(511,)), "stop_token_ids contains token id 511"),
        (lambda q: q.chat(7), "query is int"),
        (lambda q: q.chat("a", [("b",)]), "history contains"),
        (lambda q: q.chat("a", ["bc"]), "history contains 'bc'"),
        (lambda q: q.chat("a", max_window_size=0), "max_window_size=0"),
        (lambda q: q.chat("a", n=2), "n is 2"),
        (lambda q: q.complete_chat([]), "no messages"),
        (lambda q: q.complete_chat([{"role": "user"}]), "Message 0 is dict"),
    ],
)
def test_bad_requests_are_named(qwen, call, message):
    with pytest.raises(RequestError, match=message):
        call(qwen)


def test_unknown_sampling_names_are_refused(qwen):
    for call in (qwen.chat, qwen.generate, qwen.chat_stream, qwen.generate_stream):
        with pytest.raises(TypeError, match=r"'max_new_tokens'.*max_tokens"):
            call("a", max_new_tokens=3)


def test_a_tokenizer_larger_than_the_model_is_refused(scripted, byte_tokenizer):
    with pytest.raises(QwenkitError, match="ids up to 259, the model only 100 rows"):
        Qwen(scripted(b"", 1, rows=100), byte_tokenizer)


def test_devices_and_dtypes_are_checked():
    with pytest.raises(RequestError, match=r"cuda:97.*not present.*cpu"):
        find_device("cuda:97")
    with pytest.raises(RequestError, match="Unknown device 'gpu'"):
        find_device("gpu")
    with pytest.raises(RequestError, match="does not run on device 'meta'"):
        find_device("meta")
    assert find_device("cpu")[0] == torch.device("cpu")
    with pytest.raises(RequestError, match=r"'int8'.*bfloat16.*float32"):
        parse_dtype("int8")
    with pytest.raises(RequestError, match="Unknown dtype"):
        parse_dtype(torch.int32)
    assert (parse_dtype("auto"), parse_dtype("bf16"), parse_dtype(torch.float16)) == (
        None,
        torch.bfloat16,
        torch.float16,
    )


def test_auto_dtype_on_a_cpu_follows_its_features(tmp_path):
    cpu, info = torch.device("cpu"), tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n\n")
    assert cpu_bfloat16(info) == "avx512_bf16"
    info.write_text("flags : avx2 avx512f\n")
    assert cpu_bfloat16(info) is None
    assert cpu_bfloat16(tmp_path / "absent") is None
    chosen, why = choose_dtype(cpu, torch.bfloat16)
    assert chosen == (torch.bfloat16 if cpu_bfloat16() else torch.float32)
    assert "CPU" in why
    assert choose_dtype(cpu, torch.float32)[0] == torch.float32
    assert choose_dtype(cpu, torch.float32, quantized=True)[0] == chosen


def test_explain_says_what_runs(qwen):
    text = qwen.explain()
    for part in (
        "model: tiny (chat)",
        "device: cpu",
        "dtype: float32 (as asked)",
        "15 x Linear, 1 x Linear (output)",
        "dynamic NTK",
    ):
        assert part in text
    assert (qwen.device, qwen.dtype) == (torch.device("cpu"), torch.float32)
