"""Typing at the chat prompt: line editing, several lines, history, completion of commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import completion_is_selected, has_completions
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output, create_output

from qwenkit.cli.commands import COMMANDS
from qwenkit.cli.settings import KEYS

FENCE = '"""'


def needs_more(text: str) -> bool:
    """True while a block or a continued line is open, so that Enter starts a new line."""
    start = text.lstrip()
    if start.startswith(FENCE):
        return not (len(start.rstrip()) >= 2 * len(FENCE) and start.rstrip().endswith(FENCE))
    backslashes = len(text) - len(text.rstrip("\\"))
    return backslashes % 2 == 1


def joined(text: str) -> str:
    """What was typed, without the marks of block and continuation; the lines stay lines."""
    stripped = text.strip()
    if stripped.startswith(FENCE) and stripped.endswith(FENCE) and len(stripped) >= 2 * len(FENCE):
        return stripped[len(FENCE) : -len(FENCE)].strip("\n")
    lines = text.split("\n")
    continued = [line[:-1] if needs_more(line) else line for line in lines[:-1]]
    return "\n".join([*continued, lines[-1]])


class CommandCompleter(Completer):
    """Completes command names, setting names after :conf, and file names after :save and :load."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith(":") or text.startswith("::") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            for command in COMMANDS:
                first = next((n for n in command.names if n.startswith(name)), None)
                if first is not None:
                    yield Completion(first, -len(name), display=f":{first}", display_meta=command.help)
        elif name == "conf":
            word = argument.rpartition(" ")[2]
            for key in KEYS:
                if key.startswith(word):
                    yield Completion(f"{key}=", -len(word))
        elif name in ("save", "save!", "load"):
            yield from self._files.get_completions(Document(argument), complete_event)


def _bindings() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=~(has_completions & completion_is_selected))
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if needs_more(buffer.text) and buffer.cursor_position == len(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _cancel(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()  # as a shell does: give up this line, not the session
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    return keys


def private_history(path: Path | None) -> History:
    """What was typed before, kept in a file only its owner reads; None keeps it in memory.

    Raises OSError when the file cannot be made.
    """
    if path is None:
        return InMemoryHistory()
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))
    return FileHistory(str(path))


class LineEditor:
    """`read` shows the prompt and returns one input; Ctrl-D and Ctrl-C on an empty line raise.

    history: file for the history, None for this session only. input, output: stand-ins for a terminal.
    """

    def __init__(
        self, history: Path | None, *, input: Input | None = None, output: Output | None = None
    ) -> None:
        if output is None and not sys.stdout.isatty():
            output = create_output(stdout=sys.stderr)  # stdout belongs to the answers
        self._session: PromptSession[str] = PromptSession(
            ANSI("\x1b[1;36mUser>\x1b[0m "),
            multiline=True,
            prompt_continuation=lambda width, number, wrapped: " " * width,
            key_bindings=_bindings(),
            completer=CommandCompleter(),
            complete_while_typing=True,
            reserve_space_for_menu=4,  # lines kept free below the prompt; the default 8 pushes answers up
            history=private_history(history),
            input=input,
            output=output,
            enable_open_in_editor=True,
        )

    def read(self) -> str:
        """One input, without the marks of blocks and continued lines."""
        return joined(self._session.prompt())
