"""model.chat, model.chat_stream, and the batch and completion recipes of the original README."""

from __future__ import annotations

import copy
import itertools
import json
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from qwenkit.core import RequestError, UnsupportedError
from qwenkit.hf.chat import _until_end
from qwenkit.text.chatml import make_context

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "text.json").read_text(encoding="utf-8"))
GREEDY = {"do_sample": False, "repetition_penalty": 1.0, "top_p": None, "top_k": None}
END, START, TEXT_END = 151645, 151644, 151643


@pytest.fixture
def scripted(chat_model, monkeypatch):
    """Makes the model reply with given ids, whatever it is asked; returns what forward was fed."""

    forward = type(chat_model).forward

    def script(ids: list[int]):
        fed = []

        def speak(self, *args, **kwargs):
            out = forward(self, *args, **kwargs)
            fed.append(kwargs["input_ids"])
            out.logits = torch.full_like(out.logits, -30.0)
            out.logits[:, -1, ids[min(len(fed), len(ids)) - 1]] = 30.0
            return out

        monkeypatch.setattr(type(chat_model), "forward", speak)
        return fed

    return script


# -- chat --------------------------------------------------------------------------------------------


def test_the_prompt_is_the_originals(chat_model, tokenizer, scripted):
    cases = [case for case in GOLDEN["make_context"] if case.get("chat_format", "chatml") == "chatml"]
    assert len(cases) > 10
    for case in cases[:12]:
        fed = scripted([END])
        chat_model.chat(
            tokenizer,
            case["query"],
            history=case["history"],
            system=case["system"],
            max_window_size=case["max_window_size"],
        )
        assert fed[0].tolist() == [case["token_ids"]]


def test_three_turns_as_in_the_readme(chat_model, tokenizer, scripted):
    said = tokenizer.encode("你好！很高兴为你提供帮助。")
    scripted([*said, END])
    response, history = chat_model.chat(tokenizer, "你好", history=None)
    assert response == "你好！很高兴为你提供帮助。"
    assert history == [("你好", response)]
    fed = scripted([*tokenizer.encode(" ok "), END])
    before = copy.deepcopy(history)
    second, longer = chat_model.chat(tokenizer, "Continue", history=history)
    assert second == "ok"
    assert history == before
    assert longer == [*history, ("Continue", "ok")]
    assert fed[0].tolist() == [make_context(tokenizer.core, "Continue", history, None).token_ids]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([9707, END], "Hello"),
        ([9707, START, 1879], "Hello"),
        ([9707, TEXT_END], "Hello"),
        ([END], ""),
        ([9707, 1879, 51461, 117, END], "Hello world 根"),
        ([51461, END], "\ufffd"),
        ([9707, 151700, 1879, END], "Hello world"),
    ],
)
def test_replies_and_their_ends(chat_model, tokenizer, scripted, ids, text):
    scripted(ids)
    assert chat_model.chat(tokenizer, "x")[0] == text
    scripted(ids)
    streamed = list(chat_model.chat_stream(tokenizer, "x", history=None))
    assert streamed[-1].strip() == text


def test_no_last_token_is_lost_at_max_new_tokens(chat_model, tokenizer, scripted):
    """The original dropped it (reference: chat section 4)."""
    scripted([9707, 1879, 9707])
    assert chat_model.chat(tokenizer, "x", max_new_tokens=2)[0] == "Hello world"


def test_no_leading_characters_are_lost_after_normalisation(chat_model, tokenizer, scripted):
    """The original cut the reply by characters of the prompt before NFC (reference: chat section 4)."""
    scripted([9707, END])
    assert chat_model.chat(tokenizer, "e\u0301" * 3)[0] == "Hello"


def test_stop_words_end_the_reply_and_the_list_is_not_changed(chat_model, tokenizer, scripted):
    stop = [tokenizer.encode("Observation:")]
    kept = copy.deepcopy(stop)
    scripted([9707, *stop[0], 1879, END])
    response, _ = chat_model.chat(tokenizer, "x", stop_words_ids=stop)
    assert response == "HelloObservation:"
    assert stop == kept
    scripted([9707, *stop[0], 1879, END])
    assert list(chat_model.chat_stream(tokenizer, "x", stop_words_ids=stop))[-1] == "HelloObservation:"
    assert stop == kept


def test_generation_arguments_and_configuration(chat_model, tokenizer):
    own = GenerationConfig(chat_format="chatml", max_new_tokens=5, do_sample=False, eos_token_id=TEXT_END,
                           pad_token_id=TEXT_END)  # fmt: skip
    prompt = torch.tensor([make_context(tokenizer.core, "你好", [], None).token_ids])
    want = chat_model.generate(prompt, generation_config=own)[0, prompt.shape[1] :].tolist()
    text = tokenizer.decode(_until_end(want, tokenizer.core), skip_special_tokens=True).strip()
    assert chat_model.chat(tokenizer, "你好", generation_config=own)[0] == text
    assert chat_model.chat(tokenizer, "你好", None, max_new_tokens=5, **GREEDY)[0] == text
    assert own.max_new_tokens == 5
    torch.manual_seed(1)
    first = chat_model.chat(tokenizer, "你好", max_new_tokens=8)
    torch.manual_seed(1)
    assert chat_model.chat(tokenizer, "你好", max_new_tokens=8) == first


def test_dropped_turns_are_said(chat_model, tokenizer, scripted, caplog):
    scripted([END])
    history = [("one two three", "four"), ("five", "six")]
    _, longer = chat_model.chat(tokenizer, "x", history=history, max_window_size=30)
    assert "left out the 1 oldest turns: max_window_size=30" in caplog.text
    assert longer[:2] == history


@pytest.mark.parametrize("method", ["chat", "chat_stream"])
def test_what_chat_refuses(chat_model, tokenizer, method):
    call = getattr(chat_model, method)
    with pytest.raises(RequestError, match="chat_stream"):
        call(tokenizer, "x", stream=True)
    with pytest.raises(RequestError, match="AutoTokenizer"):
        call(object(), "x")
    with pytest.raises(RequestError, match="stop_words_ids"):
        call(tokenizer, "x", stop_words_ids=[[]])
    base = GenerationConfig(chat_format="raw")
    with pytest.raises(UnsupportedError, match=r"'raw'.*-Chat"):
        call(tokenizer, "x", generation_config=base)
    with pytest.raises(UnsupportedError, match="None"):
        call(tokenizer, "x", generation_config=GenerationConfig())


def test_a_core_tokenizer_serves_too(chat_model, tokenizer):
    kwargs = {"max_new_tokens": 4, **GREEDY}
    assert chat_model.chat(tokenizer.core, "x", **kwargs) == chat_model.chat(tokenizer, "x", **kwargs)


# -- chat_stream -------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [GREEDY, {"do_sample": True, "top_k": 0}, {"top_k": 1}])
def test_stream_grows_to_the_reply_of_chat(chat_model, tokenizer, settings):
    """Greedy too: the original's stream always sampled (reference: chat section 6)."""
    torch.manual_seed(7)
    response, _ = chat_model.chat(tokenizer, "讲个故事", max_new_tokens=20, **settings)
    torch.manual_seed(7)
    texts = list(chat_model.chat_stream(tokenizer, "讲个故事", history=None, max_new_tokens=20, **settings))
    assert all(b.startswith(a) and b != a for a, b in itertools.pairwise(texts))
    assert len(texts) > 5
    assert texts[-1].strip() == response


def test_stream_gives_whole_characters_token_by_token(chat_model, tokenizer, scripted):
    ids = [9707, *tokenizer.encode("🙂根"), END]
    raw = [9707, 51461, 117, 1879, END]
    scripted(ids)
    assert list(chat_model.chat_stream(tokenizer, "x")) == ["Hello", "Hello🙂", "Hello🙂根"]
    scripted(raw)
    assert list(chat_model.chat_stream(tokenizer, "x")) == ["Hello", "Hello ", "Hello 根", "Hello 根 world"]


def test_stream_of_nothing_yields_once(chat_model, tokenizer, scripted):
    scripted([END])
    assert list(chat_model.chat_stream(tokenizer, "x")) == [""]


def chat_threads():
    return [thread for thread in threading.enumerate() if thread.name == "qwenkit-chat-stream"]


def test_closing_the_stream_ends_generation(chat_model, tokenizer, scripted):
    fed = scripted([9707])
    stream = chat_model.chat_stream(tokenizer, "x", max_new_tokens=400)
    assert next(stream) == "Hello"
    stream.close()
    assert not chat_threads()
    assert len(fed) < 10


def test_an_error_in_generation_reaches_the_reader(chat_model, tokenizer):
    with pytest.raises(ValueError, match="no_such_argument"):
        list(chat_model.chat_stream(tokenizer, "x", no_such_argument=1))

    def broken(input_ids, scores):
        raise KeyError("from a logits processor")

    with pytest.raises(KeyError, match="from a logits processor"):
        list(chat_model.chat_stream(tokenizer, "x", logits_processor=[broken], max_new_tokens=3))
    assert not chat_threads()


# -- recipes of the README ---------------------------------------------------------------------------


def test_batch_recipe_equals_the_questions_asked_alone(chat_model, chat_folder):
    """Reference: chat section 9."""
    tokenizer = AutoTokenizer.from_pretrained(
        chat_folder,
        pad_token="<|extra_0|>",
        eos_token="<|endoftext|>",
        padding_side="left",
        trust_remote_code=True,
    )
    model = chat_model
    config = GenerationConfig.from_pretrained(
        chat_folder, pad_token_id=tokenizer.pad_token_id, max_new_tokens=12, **GREEDY
    )
    questions = ["我想听你说爱我。", "今天我想吃点啥，甜甜的，推荐下", "我马上迟到了，怎么做才能不迟到"]
    texts = [make_context(tokenizer.core, q, [], None).text for q in questions]
    ids = tokenizer(texts, padding="longest")["input_ids"]
    lengths = [len(row) - row.count(tokenizer.pad_token_id) for row in ids]
    assert len(set(lengths)) == 3
    out = model.generate(torch.tensor(ids), generation_config=config, return_dict_in_generate=False)
    for row, question, length in zip(out, questions, lengths, strict=True):
        kept = [i for i in row.tolist() if i != tokenizer.pad_token_id]
        assert kept[:length] == make_context(tokenizer.core, question, [], None).token_ids
        reply = tokenizer.decode(_until_end(kept[length:], tokenizer.core)).strip()
        assert reply == model.chat(tokenizer, question, generation_config=config)[0]


def test_the_pipeline_of_transformers(chat_model, tokenizer):
    from transformers import pipeline

    kwargs = {"max_new_tokens": 4, "do_sample": False, "repetition_penalty": 1.0}
    run = pipeline("text-generation", model=chat_model, tokenizer=tokenizer)
    said = run([{"role": "user", "content": "你好"}], **kwargs)[0]["generated_text"][-1]
    prompt = torch.tensor([make_context(tokenizer.core, "你好", [], None).token_ids])
    want = chat_model.generate(prompt, **kwargs)[0, prompt.shape[1] :]
    assert said == {"role": "assistant", "content": tokenizer.decode(want, skip_special_tokens=True)}


def test_two_streams_on_one_model_do_not_disturb_each_other(chat_model, tokenizer):
    questions = ["你好", "one two three " * 30]  # the second is past the training length of 64
    kwargs = {"max_new_tokens": 10, **GREEDY}
    alone = [list(chat_model.chat_stream(tokenizer, q, **kwargs)) for q in questions]
    streams = [chat_model.chat_stream(tokenizer, q, **kwargs) for q in questions]
    together = [list(texts) for texts in zip(*itertools.zip_longest(*streams), strict=True)]
    assert [[t for t in texts if t is not None] for texts in together] == alone


def test_base_model_completion(chat_model, tokenizer):
    """Reference: chat section 10; specials parsed, stop words of the config honoured."""
    prompt = "蒙古国的首都是乌兰巴托（Ulaanbaatar）\n冰岛的首都是雷克雅未克（Reykjavik）\n埃塞俄比亚的首都是"
    inputs = tokenizer(prompt, return_tensors="pt").to(chat_model.device)
    config = GenerationConfig(chat_format="raw", max_new_tokens=8, do_sample=False, pad_token_id=TEXT_END)
    out = chat_model.generate(**inputs, generation_config=config)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 8
    assert tokenizer.decode(out[0], skip_special_tokens=True).startswith(prompt)
    fifth = out[0, -4].item()
    config.stop_words_ids = [[fifth]]
    stopped = chat_model.generate(**inputs, generation_config=config)
    assert stopped[0, -1] == fifth
    assert stopped.shape[1] <= out.shape[1] - 3


class Favour:
    """A logits processor that wants one token above all others."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, self.token] += 1e4
        return scores


@pytest.mark.parametrize("method", ["chat", "chat_stream"])
def test_rows_without_text_are_never_spoken(chat_model, tokenizer, method):
    """docs/differences.md, "Tokens after 151,850": the padding rows of the matrices have no text."""
    options = {**GREEDY, "max_new_tokens": 3, "logits_processor": [Favour(151900)]}
    answer = getattr(chat_model, method)(tokenizer, "hi", **options)
    assert isinstance(answer[0] if method == "chat" else list(answer)[-1], str)


def test_tokens_the_caller_suppresses_stay_suppressed(chat_model, tokenizer):
    favourite = tokenizer.core.encode("x")[0]
    options = {**GREEDY, "max_new_tokens": 2, "logits_processor": [Favour(favourite)]}
    assert "x" in chat_model.chat(tokenizer, "hi", **options)[0]
    assert "xx" not in chat_model.chat(tokenizer, "hi", suppress_tokens=[favourite], **options)[0]
