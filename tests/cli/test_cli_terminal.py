"""Pipes, screens and keyboards, with a pseudo-terminal where one is needed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.cli.prompt_view import prompt_view
from qwenkit.cli.terminal import decoded, printable
from qwenkit.core import RequestError

ASK = "from qwenkit.cli.terminal import piped_text; print(repr(piped_text(needed={needed})))"


@given(st.text())
def test_printable_text_has_no_control_characters(text: str) -> None:
    shown = printable(text)
    assert all(c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160) for c in shown)
    if not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text):
        assert shown == text


@pytest.mark.parametrize(
    ("data", "text"), [(b"", ""), (b"a\n", "a"), (b"a\n\n", "a\n"), (b"\xef\xbb\xbfa", "a"), (b"a\r\n", "a")]
)
def test_decoded(data: bytes, text: str) -> None:
    assert decoded(data, "stdin") == text


def test_decoded_names_the_offset() -> None:
    with pytest.raises(RequestError, match=r"file.txt is not UTF-8 text: byte 0xff at offset 2"):
        decoded(b"ab\xff", "file.txt")


def test_a_silent_pipe_gets_a_word_when_there_is_a_prompt_already() -> None:
    waiting = subprocess.Popen(
        [sys.executable, "-c", ASK.format(needed=False)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert waiting.stderr is not None
    assert "Waiting for the end of stdin" in waiting.stderr.readline()
    out, _ = waiting.communicate("late\n", timeout=60)
    assert out == "'late'\n"


def test_a_closed_stdin_is_no_text() -> None:
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "$0" <&-', ASK.format(needed=True)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "None\n"


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals exist on POSIX only")
def test_keys_typed_during_an_answer_are_kept_and_not_echoed() -> None:
    program = (
        "import sys, time\n"
        "from qwenkit.cli.terminal import silent_keyboard\n"
        "with silent_keyboard():\n"
        "    print('answer', flush=True); time.sleep(2)\n"
        "print('got', sys.stdin.readline().strip(), flush=True)\n"
    )
    terminal, inner = os.openpty()
    child = subprocess.Popen([sys.executable, "-c", program], stdin=inner, stdout=inner)
    shown = b""
    while b"answer" not in shown:
        shown += os.read(terminal, 100)
    os.write(terminal, b"typed ahead\n")
    while b"got" not in shown or not shown.endswith(b"\n"):
        shown += os.read(terminal, 100)
    assert child.wait(timeout=60) == 0
    os.close(terminal)
    os.close(inner)
    assert b"got typed ahead" in shown
    assert shown.count(b"typed ahead") == 1


def test_the_shown_prompt_is_the_prompt_the_engine_reads(vocabulary: Path) -> None:
    """One template for all: what --show-prompt prints are the ids that reach the model."""
    from qwenkit.engine import Qwen
    from qwenkit.model import CausalLM, ModelConfig
    from qwenkit.text import Tokenizer

    config = ModelConfig(
        vocab_size=151936, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, ffn_size=8,
        rotary_dim=8, seq_length=256, max_positions=256,
    )  # fmt: skip
    tokenizer = Tokenizer.from_tiktoken(vocabulary)
    model = CausalLM(config).initialize()
    read: list[list[int]] = []
    model.transformer.wte.register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0].flatten().tolist())
    )
    qwen = Qwen(model, tokenizer)
    history = [("first <|im_end|>", "eins"), ("second", "zwei")]
    for system, window in ((None, None), ("S", None), ("", 30)):
        read.clear()
        with pytest.warns(UserWarning, match="left out") if window else contextlib.nullcontext():
            list(qwen.chat_stream("问题", history, system, max_window_size=window, max_tokens=1))
        shown = prompt_view(qwen, "问题", history, system, window)
        assert shown.splitlines()[-1] == "ids: " + " ".join(map(str, read[0]))
