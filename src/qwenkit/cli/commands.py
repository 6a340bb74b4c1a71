"""The colon commands of the interactive chat: one table, one small function each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from qwenkit.cli.conversation import Conversation
from qwenkit.cli.terminal import printable
from qwenkit.core import RequestError

if TYPE_CHECKING:
    from qwenkit.cli.repl import Repl


@dataclass(frozen=True)
class Command:
    """`run` gets the chat and everything typed after the name, stripped."""

    names: tuple[str, ...]
    arguments: str
    help: str
    run: Callable[[Repl, str], None]


def _help(repl: Repl, _: str) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for command in COMMANDS:
        names = " ".join(f":{name}" for name in command.names)
        table.add_row(Text(f"{names} {command.arguments}".strip(), style="bold"), Text(command.help))
    repl.notes.print(table)
    repl.note(
        'Alt-Enter, or Esc then Enter, starts a new line; so does a line ending in a backslash. """ opens '
        'and closes a block. Ctrl-C stops an answer. A question that begins with ":" is typed with "::".'
    )


def _quit(repl: Repl, _: str) -> None:
    repl.running = False


def _clear(repl: Repl, _: str) -> None:
    repl.notes.clear()
    repl.welcome()


def _clear_history(repl: Repl, _: str) -> None:
    count = len(repl.conversation.turns)
    repl.conversation.turns.clear()
    repl.interrupted = None
    repl.note(f"All {count} turns of history cleared; the system prompt stays.")


def _history(repl: Repl, _: str) -> None:
    if not repl.conversation.turns:
        repl.note("The history is empty.")
    for number, (query, reply) in enumerate(repl.conversation.turns, 1):
        repl.notes.print(Text(f"{number} User: ", style="bold") + Text(printable(query), style="not bold"))
        repl.notes.print(
            Text(f"{number} {repl.model.name}: ", style="bold") + Text(printable(reply), style="not bold")
        )


def _seed(repl: Repl, argument: str) -> None:
    if argument:
        repl.settings.assign(f"seed={'null' if argument == 'off' else argument}")
    seed = repl.settings.params().seed
    if seed is None:
        repl.note("No seed is set: answers differ each time.")
    else:
        repl.note(f"Seed {seed}, used afresh for every answer; ':seed off' removes it.")


def _conf(repl: Repl, argument: str) -> None:
    changed = repl.settings.assign(argument) if argument else []
    rows = repl.settings.rows(repl.model.generation)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, value, source in rows:
        if not changed or key in changed:
            table.add_row(key, Text(value, style="bold"), Text(source, style="dim"))
    repl.notes.print(table)


def _reset_conf(repl: Repl, _: str) -> None:
    repl.settings.reset()
    repl.note("Settings are as they were at the start.")


def _system(repl: Repl, argument: str) -> None:
    if argument:
        repl.conversation.system = argument
        repl.note(f"System prompt set; it holds from the next question on, for all {repl.turn_count()}.")
        return
    system = repl.conversation.system
    origin = "the checkpoint's default" if system is None else "set by you"
    text = repl.model.generation.default_system if system is None else system
    repl.notes.print(Text(f"System prompt ({origin}): {printable(text)}"))


def _save(repl: Repl, argument: str, *, replace: bool = False) -> None:
    path = _path(argument, ":save")
    repl.conversation.save(path, replace=replace)
    repl.note(f"Saved {repl.turn_count()} to {path}.")


def _save_over(repl: Repl, argument: str) -> None:
    _save(repl, argument, replace=True)


def _load(repl: Repl, argument: str) -> None:
    path = _path(argument, ":load")
    repl.conversation = Conversation.load(path)
    repl.interrupted = None
    repl.note(f"Loaded {repl.turn_count()} from {path}; what was said before is forgotten.")


def _path(argument: str, command: str) -> Path:
    if not argument:
        raise RequestError(f"{command} needs a file name.", f"Write {command} talk.json")
    return Path(argument).expanduser()


def _regenerate(repl: Repl, _: str) -> None:
    repl.regenerate()


def _undo(repl: Repl, _: str) -> None:
    if not repl.conversation.turns:
        repl.note("There is no turn to take back.")
        return
    query, _reply = repl.conversation.turns.pop()
    first = printable(query).splitlines()[0] if query else ""
    repl.note(f"Took back the question {first[:60]!r} and its answer; {repl.turn_count()} left.")


def _tokens(repl: Repl, _: str) -> None:
    used = repl.usage
    repl.note(
        f"{used.answers} answer{'' if used.answers == 1 else 's'} so far: {used.prompt} prompt tokens read, "
        f"{used.completion} tokens written."
    )
    repl.note(f"The conversation takes {used.last} of {repl.model.config.context_length} tokens of context.")


COMMANDS: tuple[Command, ...] = (
    Command(("help", "h"), "", "show this help", _help),
    Command(("exit", "quit", "q"), "", "leave (so does Ctrl-D)", _quit),
    Command(("clear", "cl"), "", "clear the screen", _clear),
    Command(("clear-his", "clh"), "", "forget the conversation", _clear_history),
    Command(("history", "his"), "", "show the conversation", _history),
    Command(("regenerate", "r"), "", "answer the last question again", _regenerate),
    Command(("undo",), "", "take back the last question and answer", _undo),
    Command(("system",), "[TEXT]", "show or set the system prompt", _system),
    Command(("seed",), "[N | off]", "show, set or remove the seed", _seed),
    Command(("conf",), "[KEY=VALUE ...]", "show or change settings", _conf),
    Command(("reset-conf",), "", "undo all changes of settings", _reset_conf),
    Command(("save",), "FILE", "save the conversation as JSON messages", _save),
    Command(("save!",), "FILE", "the same, replacing a file", _save_over),
    Command(("load",), "FILE", "continue a saved conversation", _load),
    Command(("tokens",), "", "show how many tokens were used", _tokens),
)

_BY_NAME = {name: command for command in COMMANDS for name in command.names}


def find(name: str) -> Command:
    """The command called `name` (without colon). Raises RequestError naming the nearest one."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    near = get_close_matches(name, _BY_NAME, n=1)
    meant = f"Did you mean :{near[0]}? " if near else ""
    raise RequestError(
        f"There is no command {':' + name!r}.",
        f'{meant}:help lists all; to send a text that begins with ":", begin it with "::".',
    )
