"""Text in from a pipe, text out to a pipe or a screen. Knows nothing of models."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

import typer

from qwenkit.core import RequestError

if TYPE_CHECKING:
    from rich.text import Text

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PATIENCE_S = 2.0  # a pipe that stays silent this long deserves a word, or the program looks hung


def printable(text: str) -> str:
    """`text` with control characters spelled out, so that model output cannot steer the terminal.

    Newline and tab stay; a carriage return is dropped, because it usually comes before a newline.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r", ""))


def is_terminal(stream: TextIO | None) -> bool:
    """False also for a stream that is closed or absent (a service, a detached process)."""
    return stream is not None and not stream.closed and stream.isatty()


def piped_text(*, needed: bool) -> str | None:
    """All of stdin as text without its last newline, or None when nothing is piped in.

    needed: False when there is a prompt already, so that a pipe that stays open gets a word of warning
    rather than looking like a hang. Raises RequestError for bytes that are not UTF-8.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    notice = threading.Timer(
        _PATIENCE_S,
        typer.echo,
        ["Waiting for the end of stdin (add </dev/null if it has nothing) ..."],
        {"err": True},
    )
    notice.daemon = True
    if not needed:
        notice.start()
    try:
        data = sys.stdin.buffer.read()
    finally:
        notice.cancel()
    return decoded(data, "stdin") or None


def decoded(data: bytes, source: str) -> str:
    """UTF-8 text of `data` without byte order mark and without the newline that editors and echo add.

    Raises RequestError naming `source` and the offset.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{source} is not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start}.",
            "Convert it first, for example with: iconv -f GB18030 -t UTF-8",
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


class ReplyWriter:
    """Streams a reply to stdout, byte for byte into a pipe and made printable on a screen."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._on_screen = is_terminal(self._stream)
        self._last = ""

    def write(self, text: str) -> None:
        if text:
            self._stream.write(printable(text) if self._on_screen else text)
            self._stream.flush()
            self._last = text

    def finish(self) -> None:
        """End with exactly one newline more than none: a reply that has its own keeps it."""
        if not self._last.endswith("\n"):
            self._stream.write("\n")
            self._stream.flush()


@contextlib.contextmanager
def loading_line() -> Iterator[None]:
    """A word on stderr while a model loads, gone afterwards; nothing where lines cannot be erased."""
    erasable = is_terminal(sys.stderr) and os.environ.get("TERM", "dumb") != "dumb"
    if erasable:
        typer.echo("Loading ...\r", nl=False, err=True)
    try:
        yield
    finally:
        if erasable:
            typer.echo("\x1b[K", nl=False, err=True)


@contextlib.contextmanager
def silent_keyboard() -> Iterator[None]:
    """Keys typed meanwhile are kept for the next prompt but not echoed into what is being written."""
    if os.name != "posix" or not is_terminal(sys.stdin):
        yield
        return
    import termios

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = termios.tcgetattr(terminal)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def print_table(rows: Iterable[Sequence[str | Text]], after: Sequence[str | Text] = ()) -> None:
    """Rows in aligned columns on stdout, then the lines of `after`.

    A screen wraps long cells; into a pipe they stay whole, because lines are records there.
    """
    from rich.console import Console
    from rich.table import Table

    on_screen = is_terminal(sys.stdout)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, width=None if on_screen else 10_000)
    if on_screen:
        console.print(table, *after, sep="\n")
        return
    with console.capture() as captured:
        console.print(table, *after, sep="\n")
    for line in captured.get().splitlines():  # without the blanks that fill the last column
        typer.echo(line.rstrip())
