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
from rich.segment import Segment
from rich.style import Style

from qwenkit.cli.terminal import printable

_SHARE_OF_TIME = 0.2  # at most this part of the time goes into drawing; the rest is the model's
_FASTEST_REDRAW_S = 0.05


class _LeftHeading(Heading):
    LEVEL_ALIGN = dict.fromkeys(Heading.LEVEL_ALIGN, "left")


class _Block(Markdown):
    """One block, given as its tokens."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": _LeftHeading}

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("", code_theme="ansi_dark", hyperlinks=False)
        self.parsed = tokens


def parse(markup: str) -> list[list[Token]]:
    """The outermost blocks of CommonMark with tables and strikethrough, each as its tokens.

    As chat means it: every line break is kept, and HTML is text to be read.
    """
    parser = MarkdownIt().enable(["table", "strikethrough"]).disable(["html_block", "html_inline"])
    blocks: list[list[Token]] = []
    for token in parser.parse(markup):
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
        if token.level == 0 and token.nesting >= 0:
            blocks.append([])
        blocks[-1].append(token)
    return blocks


def finished_length(markup: str) -> int:
    """Characters of `markup` whose blocks can no longer change by appending text.

    The last block that has a complete line is always still open: a list may go on, a paragraph may
    turn out to be a heading.
    """
    complete = markup[: markup.rfind("\n") + 1]
    blocks = parse(complete)
    if len(blocks) < 2 or blocks[-1][0].map is None:
        return 0
    return sum(len(line) + 1 for line in complete.split("\n")[: blocks[-1][0].map[0]])


def render(console: Console, options: ConsoleOptions, markup: str) -> list[list[Segment]]:
    """`markup` as lines, one empty line between blocks, no blanks at the ends of lines."""
    lines: list[list[Segment]] = []
    for block in parse(markup):
        rendered = [_stripped(line) for line in console.render_lines(_Block(block), options, pad=False)]
        while rendered and not rendered[0]:
            rendered.pop(0)
        while rendered and not rendered[-1]:
            rendered.pop()
        if rendered:
            lines += [[], *rendered] if lines else rendered
    return lines


def _stripped(line: list[Segment]) -> list[Segment]:
    line = list(line)
    while line and not line[-1].text.strip():
        line.pop()
    if line:
        text, style, control = line[-1]
        line[-1] = Segment(text.rstrip(), style, control)
    return line


class _Lines:
    def __init__(self, lines: list[list[Segment]]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._lines:
            yield from line
            yield Segment.line()


class _Tail:
    """The last lines of a reply's open part that fit the screen, below an empty line if `spaced`."""

    def __init__(self, markup: str, spaced: bool) -> None:
        self._markup = markup
        self._spaced = spaced

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = render(console, options, self._markup) or [[Segment("…", Style(dim=True))]]
        if self._spaced:
            lines.insert(0, [])
        yield _Lines(lines[-max(1, console.height - 2) :])


class MarkdownReply:
    """Context manager: `write` new text as it comes; on exit, also by an exception, all of it is printed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(_Tail("", spaced=False), console=console, auto_refresh=False, transient=True)
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
        self._live.update(_Tail(self._open, spaced=self._printed), refresh=True)

    def _print(self, markup: str) -> None:
        lines = render(self._console, self._console.options, markup)
        if lines:
            self._console.print(_Lines([[], *lines] if self._printed else lines), end="")
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
