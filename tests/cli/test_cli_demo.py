"""The command line on the real demo model, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.model


def qwenkit(*arguments: str, piped: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from qwenkit.cli.main import main; main()", *arguments],
        input=piped, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


def test_one_shot_stdout_holds_the_reply_alone() -> None:
    greedy = ["--temperature", "0", "--max-tokens", "12"]
    done = qwenkit("chat", "-p", "Repeat exactly this one word: banana", *greedy)
    assert done.returncode == 0
    assert "banana" in done.stdout.lower()
    assert "tok/s" in done.stderr
    assert "small" in done.stderr  # it says what is talking
    again = qwenkit("chat", *greedy, "-q", piped="Repeat exactly this one word: banana\n")
    assert again.stdout == done.stdout


def test_generate_stop_and_json() -> None:
    arguments = ["--temperature", "0", "--max-tokens", "24", "-q"]
    whole = qwenkit("generate", "-p", "def add(a, b):\n", *arguments)
    assert "return a + b" in whole.stdout
    cut = qwenkit("generate", "-p", "def add(a, b):\n", *arguments, "--stop", "a + b", "--json")
    choice = json.loads(cut.stdout)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == "a + b"
    assert whole.stdout.startswith(choice["text"])
    assert "a + b" not in choice["text"]


def test_info_and_tokenize() -> None:
    facts = json.loads(qwenkit("info", "--json").stdout)
    assert facts["layout"] == "gguf"
    assert "Q4_K_M" in facts["quantization"]
    assert facts["is_chat"] is True
    assert qwenkit("tokenize", "demo", "你好 hello", "--ids").stdout == "108386 23811\n"
