"""`qwenkit generate`: plain continuation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from standin_model import StandIn
from typer.testing import CliRunner

from qwenkit.cli.loading import State
from qwenkit.cli.main import app
from qwenkit.core import Grammar


def generate(model: StandIn, *arguments: str, piped: str = "") -> Any:
    return CliRunner().invoke(app, ["generate", *arguments], input=piped, obj=State(load=model.load))


def test_stdout_holds_the_continuation_alone() -> None:
    model = StandIn([" of", " France"], finish="length")
    done = generate(model, "-p", "The capital", "--max-tokens", "2")
    assert done.stdout == " of France\n"
    assert "ended at max_tokens=2" in done.stderr
    assert model.asked[0]["prompt"] == "The capital"
    assert model.asked[0]["parse_special"] is False


def test_control_tokens_only_when_asked_for() -> None:
    model = StandIn()
    generate(model, "-p", "<|im_start|>", "--parse-special")
    assert model.asked[0]["parse_special"] is True


@pytest.mark.parametrize(
    ("data", "prompt"), [("text", "text"), ("text\n", "text"), ("text\n\n", "text\n"), ("a\r\n", "a")]
)
def test_prompt_from_file_and_pipe(tmp_path: Path, data: str, prompt: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(data.encode())
    model = StandIn()
    assert generate(model, "--file", str(file)).exit_code == 0
    assert generate(model, piped=data).exit_code == 0
    assert [asked["prompt"] for asked in model.asked] == [prompt, prompt]


def test_no_text_a_missing_file_and_two_sources(tmp_path: Path) -> None:
    assert generate(StandIn()).exit_code == 2
    assert generate(StandIn(), "-p", "a", "--file", "b").exit_code == 2
    done = generate(StandIn(), "--file", str(tmp_path / "absent"))
    assert done.exit_code == 1
    assert "absent: No such file" in done.stderr


def test_json_has_every_choice_and_the_bytes_of_split_characters() -> None:
    done = generate(StandIn(["你", "好"]), "-p", "x", "--json", "--n", "2", "--logprobs", "1")
    result = json.loads(done.stdout)
    assert [choice["text"] for choice in result["choices"]] == ["你好", "你好"]
    assert result["choices"][0]["logprobs"][0]["bytes"] == [0xE4, 0xBD]
    assert result["choices"][0]["logprobs"][0]["top"][0]["id"] == 5
    assert result["usage"] == {"prompt_tokens": 11, "completion_tokens": 2, "cached_tokens": 0}
    assert result["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("arguments", [["--n", "2"], ["--logprobs", "0"]])
def test_what_plain_text_cannot_show_needs_json(arguments: list[str]) -> None:
    assert generate(StandIn(), "-p", "x", *arguments).exit_code == 2


def test_grammars_from_the_command_line(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    for arguments, grammar in (
        (["--schema", str(file)], Grammar.json_schema(schema)),
        (["--schema", json.dumps(schema)], Grammar.json_schema(schema)),
        (["--regex", "[0-9]+"], Grammar.regex("[0-9]+")),
        (["--choice", "yes", "--choice", "no"], Grammar.choice(["yes", "no"])),
        (["--json-object"], Grammar.json_object()),
        ([], None),
    ):
        model = StandIn()
        assert generate(model, "-p", "x", *arguments).exit_code == 0
        assert model.asked[0]["params"].grammar == grammar


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schema", "{"], "not JSON"),
        (["--schema", "absent.json"], "Cannot read absent.json"),
        (["--schema", '{"$ref": "https://example.com"}'], "Nothing is fetched"),
        (["--regex", "a", "--json-object"], "one of --schema"),
        (["--choice", ""], "choice 0"),
    ],
)
def test_wrong_grammars_are_usage_errors(arguments: list[str], words: str) -> None:
    done = generate(StandIn(), "-p", "x", *arguments)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())
