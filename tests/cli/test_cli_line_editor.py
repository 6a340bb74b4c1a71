"""Typing at the prompt, through prompt_toolkit's own pipe in place of a terminal."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from qwenkit.cli.line_editor import CommandCompleter, LineEditor, joined, needs_more

ENTER, NEWLINE, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x03", "\x04"


@pytest.fixture
def typing() -> Iterator[Callable[..., LineEditor]]:
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):

        def type_text(text: str, history: Path | None = None) -> LineEditor:
            keys.send_text(text)
            return LineEditor(history, input=keys, output=DummyOutput())

        yield type_text


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("hello" + ENTER, "hello"),
        ("你好" + ENTER, "你好"),
        ("one" + NEWLINE + "two" + ENTER, "one\ntwo"),
        ("one\\" + ENTER + "two" + ENTER, "one\ntwo"),
        ("a path C:\\\\" + ENTER, "a path C:\\\\"),
        ('"""' + ENTER + "def f():" + ENTER + "    pass" + ENTER + '"""' + ENTER, "def f():\n    pass"),
        ('"""a' + ENTER + ":quit" + ENTER + 'b"""' + ENTER, "a\n:quit\nb"),
        ("\x1b[200~pasted\nlines\n\x1b[201~" + ENTER, "pasted\nlines\n"),
        ("mistake" + CTRL_C + "right" + ENTER, "right"),
        ("abc\x1b[D\x1b[DX" + ENTER, "aXbc"),
    ],
)
def test_reading(typing: Callable[..., LineEditor], typed: str, read: str) -> None:
    assert typing(typed).read() == read


@pytest.mark.parametrize(("key", "error"), [(CTRL_D, EOFError), (CTRL_C, KeyboardInterrupt)])
def test_leaving_at_an_empty_prompt(
    typing: Callable[..., LineEditor], key: str, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        typing(key).read()


def test_history_is_kept_in_a_private_file(typing: Callable[..., LineEditor], tmp_path: Path) -> None:
    file = tmp_path / "state" / "history"
    assert typing("first question" + ENTER, file).read() == "first question"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert typing("\x1b[A" + ENTER, file).read() == "first question"  # a new session, arrow up


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ('"""', True),
        ('"""a\nb', True),
        ('"""a"""', False),
        ('""""""', False),
        ('""', False),
        ("a\\", True),
        ("a\\\\", False),
        ("a\\\\\\", True),
        ("", False),
    ],
)
def test_needs_more(text: str, open_: bool) -> None:
    assert needs_more(text) is open_


def test_joined_keeps_other_text() -> None:
    assert joined('say """this""" please') == 'say """this""" please'
    assert joined('""""""') == ""
    assert joined("a\\\nb\\\\\nc") == "a\nb\\\\\nc"


def completions(text: str) -> list[str]:
    return [c.text for c in CommandCompleter().get_completions(Document(text), CompleteEvent())]


def test_completion(tmp_path: Path) -> None:
    assert "regenerate" in completions(":")
    assert completions(":rege") == ["regenerate"]
    assert completions(":conf temp") == ["temperature="]
    assert completions(":conf top_p=1 max_t") == ["max_tokens="]
    assert completions("::re") == completions("re") == completions("a :re") == []
    (tmp_path / "talk.json").touch()
    assert completions(f":load {tmp_path}/ta") == ["lk.json"]
