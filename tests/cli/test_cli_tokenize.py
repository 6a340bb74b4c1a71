"""`qwenkit tokenize` on the real vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from standin_model import StandInCheckpoint
from typer.testing import CliRunner

from qwenkit.cli.loading import State
from qwenkit.cli.main import app
from qwenkit.cli.tokenize import piece, token_ids
from qwenkit.text import Tokenizer

# golden context of the original (reference: chat section 1) without its history
CHAT_NIHAO = (
    "151644 8948 198 2610 525 264 10950 17847 13 151645 198 151644 872 198 108386 151645 198 151644 77091 198"
)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return Tokenizer.from_tiktoken(vocabulary)


@pytest.fixture
def run(tokenizer: Tokenizer) -> Any:
    def invoke(*arguments: str, piped: str = "") -> Any:
        state = State(open=StandInCheckpoint(tokenizer).open)
        return CliRunner().invoke(app, ["tokenize", *arguments], input=piped, obj=state)

    return invoke


def test_one_line_a_token(run: Any) -> None:
    assert run("demo", "你好 hello\n").stdout == '108386\t"你好"\n23811\t" hello"\n198\t"\\n"\n'


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["--ids"], "108386 23811\n"),
        (["--count"], "2\n"),
    ],
)
def test_ids_and_count(run: Any, arguments: list[str], output: str) -> None:
    assert run("demo", "你好 hello", *arguments).stdout == output
    assert run("-p", "你好 hello", *arguments).stdout == output
    assert run(*arguments, piped="你好 hello\n").stdout == output


def test_json(run: Any) -> None:
    assert json.loads(run("-p", "hello", "--json").stdout) == [
        {"id": 14990, "text": "hello", "bytes": list(b"hello")}
    ]


def test_special_tokens_are_text_unless_asked_for(run: Any) -> None:
    assert int(run("-p", "<|im_end|>", "--count").stdout) > 1
    assert run("-p", "<|im_end|>", "--ids", "--parse-special").stdout == "151645\n"


def test_chat_prompt_is_that_of_the_original(run: Any) -> None:
    assert run("-p", "你好", "--chat", "--ids").stdout == CHAT_NIHAO + "\n"
    assert "151645" not in run("-p", "<|im_end|>", "--ids").stdout


@pytest.mark.parametrize("ids", ["108386 23811", "[108386, 23811]", "108386,23811"])
def test_decode(run: Any, ids: str) -> None:
    assert run("--decode", ids).stdout == "你好 hello\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--decode", "abc"],
        ["--decode", "-5"],
        ["--decode", ""],
        ["-p", "a", "--ids", "--json"],
        ["m", "a", "-p", "b"],
        ["-p", "a", "--decode", "1"],
        ["-p", "a", "--chat", "--parse-special"],
        [],
    ],
)
def test_wrong_usage(run: Any, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_an_id_without_text_is_an_error(run: Any) -> None:
    done = run("--decode", "151935")
    assert done.exit_code == 1
    assert "151935" in done.stderr


def test_pieces_of_characters_show_their_bytes() -> None:
    assert piece("é".encode()) == "é"
    assert piece(b" \xe4\xbd") == " <0xE4><0xBD>"


def test_token_ids() -> None:
    assert token_ids(" [1, 2,3 4]\n") == [1, 2, 3, 4]
