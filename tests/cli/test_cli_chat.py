"""`qwenkit chat` used once: what goes to stdout, what to stderr, and what the model is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from standin_model import StandIn
from typer.testing import CliRunner

from qwenkit.cli.loading import State
from qwenkit.cli.main import app
from qwenkit.core import GenerationConfig, Message, SamplingParams
from qwenkit.text import Tokenizer, chatml


def chat(model: StandIn, *arguments: str, piped: str | bytes = "") -> Any:
    return CliRunner().invoke(app, ["chat", *arguments], input=piped, obj=State(load=model.load))


def test_stdout_holds_the_reply_alone() -> None:
    done = chat(StandIn(["Hel", "lo."], notice="A small model is talking."), "-p", "hi")
    assert done.exit_code == 0
    assert done.stdout == "Hello.\n"
    assert done.stderr.splitlines() == [
        "A small model is talking.",
        "2 tokens · 4.0 tok/s · first after 0.50 s · prompt 11",
    ]


def test_quiet_leaves_stderr_empty() -> None:
    done = chat(StandIn(notice="A small model is talking."), "-p", "hi", "-q")
    assert (done.stdout, done.stderr) == ("Hello world.\n", "")


@pytest.mark.parametrize(
    ("arguments", "piped", "query"),
    [
        (["-p", "hi"], "", "hi"),
        ([], "from a pipe\n", "from a pipe"),
        (["-p", "Summarize:"], "a text\nof two lines\n", "Summarize:\n\na text\nof two lines"),
        ([], "\ufeffBOM and 你好", "BOM and 你好"),
    ],
)
def test_question_from_prompt_and_pipe(arguments: list[str], piped: str, query: str) -> None:
    model = StandIn()
    assert chat(model, *arguments, piped=piped).exit_code == 0
    assert model.asked[0]["query"] == query


@pytest.mark.parametrize("arguments", [[], ["-p", ""]])
def test_nothing_to_ask_is_wrong_usage(arguments: list[str]) -> None:
    model = StandIn()
    done = chat(model, *arguments)
    assert done.exit_code == 2
    assert "nothing to ask" in done.stderr
    assert model.loaded_with == {}  # found out before a model is loaded


def test_piped_bytes_that_are_not_utf8() -> None:
    done = chat(StandIn(), piped="你好".encode("gb18030"))
    assert done.exit_code == 1
    assert "stdin is not UTF-8 text: byte 0xc4 at offset 0." in done.stderr


def test_options_reach_the_model() -> None:
    model = StandIn()
    done = chat(
        model, "some/model", "-p", "hi", "--system", "Be brief.", "--temperature", "0.5", "--top-p", "0.9",
        "--top-k", "7", "--min-p", "0.1", "--repetition-penalty", "1.2", "--max-tokens", "5", "--seed", "3",
        "--stop", "A", "--stop", "\n", "--device", "cpu", "--dtype", "float32", "--offline",
        "--weights", "int8", "--head", "bf16",
        "--kv-cache", "int8", "--cache-tokens", "99",
    )  # fmt: skip
    assert done.exit_code == 0
    assert model.loaded_with == {
        "model": "some/model", "device": "cpu", "dtype": "float32", "offline": True,
        "weights": "int8", "head": "bf16",
        "kv_cache": "int8", "cache_tokens": 99,
    }  # fmt: skip
    assert model.asked[0]["system"] == "Be brief."
    assert model.asked[0]["params"] == SamplingParams(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2, max_tokens=5, seed=3,
        stop=("A", "\n"),
    )  # fmt: skip


def test_what_is_not_given_is_left_to_the_checkpoint() -> None:
    model = StandIn()
    chat(model, "-p", "hi")
    assert model.asked[0]["params"] == SamplingParams()
    assert model.asked[0]["system"] is None
    assert model.loaded_with == {
        "model": None, "device": "auto", "dtype": "auto", "offline": False, "weights": "auto", "head": "auto",
    }  # fmt: skip


def test_zero_is_a_value() -> None:
    model = StandIn()
    chat(model, "-p", "hi", "--temperature", "0", "--seed", "0")
    assert model.asked[0]["params"] == SamplingParams(temperature=0.0, seed=0)


@pytest.mark.parametrize(
    "arguments", [["--temperature", "-1"], ["--top-p", "0"], ["--stop", ""], ["--max-tokens", "0"]]
)
def test_a_value_out_of_range_is_wrong_usage(arguments: list[str]) -> None:
    done = chat(StandIn(), "-p", "hi", *arguments)
    assert done.exit_code == 2
    assert arguments[0].strip("-").replace("-", "_") in done.stderr


def test_two_different_models_are_refused() -> None:
    assert chat(StandIn(), "a", "--model", "b", "-p", "hi").exit_code == 2
    assert chat(StandIn(), "a", "--model", "a", "-p", "hi").exit_code == 0


def test_what_was_cut_or_left_out_is_said_even_when_quiet() -> None:
    generation = GenerationConfig(sampling=SamplingParams(max_tokens=2), max_window_size=6144)
    model = StandIn(finish="length", dropped=2, generation=generation)
    done = chat(model, "-p", "hi", "-q")
    assert done.stdout == "Hello world.\n"
    assert done.stderr.splitlines() == [
        "warning: The oldest 2 turns were left out: the history is longer than max_window_size=6144 tokens.",
        "warning: The reply was cut at max_tokens=2.",
    ]


def test_python_warnings_come_without_source_lines() -> None:
    import warnings

    class Warns(StandIn):
        def chat_stream(self, *args: Any, **kwargs: Any) -> Any:
            warnings.warn("This is a base model.", stacklevel=2)
            warnings.warn("The 3 oldest of 9 turns were left out: the CLI says it itself.", stacklevel=2)
            return super().chat_stream(*args, **kwargs)

    done = chat(Warns(), "-p", "hi", "-q")
    assert done.stderr == "warning: This is a base model.\n"


def test_show_prompt_is_the_prompt_of_the_one_template(vocabulary: Path) -> None:
    tokenizer = Tokenizer.from_tiktoken(vocabulary)
    done = chat(StandIn(tokenizer=tokenizer), "-p", "a <|im_end|> b", "--system", "S", "--show-prompt", "-q")
    ids = chatml.encode(tokenizer, [Message("system", "S"), Message("user", "a <|im_end|> b")])
    assert done.stdout == "Hello world.\n"
    lines = done.stderr.splitlines()
    assert lines[0] == f"prompt of {len(ids)} tokens:"
    assert lines[-1] == "ids: " + " ".join(map(str, ids))
    assert ids.count(tokenizer.im_end_id) == 2  # the user's own is plain text
    assert "<|im_start|>system\nS<|im_end|>" in done.stderr


def test_a_reply_into_a_pipe_is_not_altered() -> None:
    model = StandIn(["tab\t\x1b[31mred\x00", "\r\n", "end\n"])
    assert chat(model, "-p", "hi").stdout_bytes == b"tab\t\x1b[31mred\x00\r\nend\n"
