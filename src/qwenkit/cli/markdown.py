"""A reply that arrives in pieces, shown as markdown while it grows.

Finished blocks are printed once and stay in the scrollback; only the block being written is redrawn,
and of that no more than the screen holds. So long answers neither flicker nor repeat.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from qwenkit.cli.terminal import printable

_SHARE_OF_TIME = 0.2  # at most this part of the time goes into drawing; the rest is the model's
_FASTEST_REDRAW_S = 0.05


class _LeftHeading(Heading):
    LEVEL_ALIGN = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class ChatMarkdown(Markdown):
    """Markdown as chat means it: line breaks stay, and HTML is text to be read, not dropped."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": _LeftHeading}

    def __init__(self, markup: str) -> None:
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.markup = markup
        self.parsed = parse(markup)


def parse(markup: str) -> list[Token]:
    """Tokens of CommonMark with tables and strikethrough, without HTML, every line break a hard one."""
    parser = MarkdownIt().enable(["table", "strikethrough"]).disable(["html_block", "html_inline"])
    tokens = parser.parse(markup)
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return tokens


def finished_length(markup: str) -> int:
    """Characters of `markup` whose blocks can no longer change by appending text.

    The last block that has a complete line is always still open: a list may go on, a paragraph may
    turn out to be a heading.
    """
    complete = markup[: markup.rfind("\n") + 1]
    starts = [token.map[0] for token in parse(complete) if token.level == 0 and token.map is not None]
    if len(starts) < 2 or starts[-1] == 0:
        return 0
    return sum(len(line) + 1 for line in complete.split("\n")[: starts[-1]])


class _Tail:
    """The last lines of a reply's open block that fit the screen."""

    def __init__(self, markup: str) -> None:
        self._markup = markup

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self._markup.strip():
            yield Text("…", style="dim")
            return
        lines = console.render_lines(ChatMarkdown(self._markup), options, pad=False)
        newline = Segment.line()
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield newline


class MarkdownReply:
    """Context manager: `write` new text as it comes; on exit, also by an exception, all of it is printed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(_Tail(""), console=console, auto_refresh=False, transient=True)
        self._open = ""
        self._printed = False
        self._next_draw = 0.0

    def __enter__(self) -> MarkdownReply:
        self._live.start(refresh=True)
        return self

    def write(self, text: str) -> None:
        self._open += printable(text)
        if time.monotonic() >= self._next_draw:
            began = time.monotonic()
            self._draw()
            took = time.monotonic() - began
            self._next_draw = began + max(_FASTEST_REDRAW_S, took / _SHARE_OF_TIME)

    def _draw(self) -> None:
        cut = finished_length(self._open)
        if cut:
            self._print(self._open[:cut])
            self._open = self._open[cut:]
        self._live.update(_Tail(self._open), refresh=True)

    def _print(self, markup: str) -> None:
        if markup.strip():
            self._console.print(
                Padding(ChatMarkdown(markup.strip("\n")), (int(self._printed), 0, 0, 0), expand=False)
            )
            self._printed = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        self._print(self._open)
        self._open = ""


class PlainReply:
    """The same for a screen without cursor control, a redirected stdout, or `--raw`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def __enter__(self) -> PlainReply:
        return self

    def write(self, text: str) -> None:
        if text:
            shown = printable(text) if self._console.is_terminal else text
            self._console.file.write(shown)
            self._console.file.flush()
            self._last = text

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._last.endswith("\n"):
            self._console.file.write("\n")
            self._console.file.flush()
