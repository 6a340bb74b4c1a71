"""Streaming markdown: whatever the pieces, the screen ends as if the whole had been printed at once."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from qwenkit.cli.markdown import MarkdownReply, finished_length

BLOCKS = [
    "# 标题 Title\n\n",
    "A paragraph with **bold** and `code`\nand a line break.\n\n",
    "中文字符的宽度是两格，所以换行的时候要小心一点，不然就会很难看。\n\n",
    "- one\n- two\n  - nested\n- three\n\n",
    "1. first\n\n2. second\n\n",
    "```python\ndef f(x):\n\n\n    return x\n```\n",
    "```\nunclosed\n\n# no heading\n",
    "| a | b |\n|---|---|\n| 甲 | 1 |\n\n",
    "> quote\n> more\n\n",
    "<b>html</b> stays\n\n<div>too</div>\n\n",
    "Setext\n======\n\n",
    "text\n- list at once\n\n",
    "no newline at the end",
]
CODE = "".join(f"line {i}\n" for i in range(60))


class Screen:
    """The control codes that rich's live display uses, on an endless page of lines."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0

    def feed(self, text: str) -> list[str]:
        for code, number, letter, char in re.findall(r"(\x1b\[\??([\d;]*)([A-Za-z]))|(.|\n)", text):
            if char == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.lines):
                    self.lines.append("")
            elif char == "\r":
                self.column = 0
            elif char:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + char + line[self.column + 1 :]
                self.column += 1
            elif letter == "A":
                self.row -= int(number or 1)
                assert self.row >= 0
            elif letter == "K":
                assert number == "2"
                self.lines[self.row] = ""
            else:
                assert letter in "mhl", code
        return [line.rstrip() for line in self.lines]


def screen_after(pieces: list[str], height: int = 24) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, height=height, color_system=None)
    with MarkdownReply(console) as reply:
        for piece in pieces:
            reply.write(piece)
            reply._next_draw = 0.0  # draw at every piece: the worst case
    shown = Screen().feed(out.getvalue())
    while shown and not shown[-1]:
        shown.pop()
    return shown


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=6), st.data())
def test_pieces_do_not_matter(blocks: list[str], data: st.DataObject) -> None:
    text = "".join(blocks)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert screen_after(pieces) == screen_after([text])


def test_an_answer_longer_than_the_screen_appears_once() -> None:
    text = f"Before.\n\n```\n{CODE}```\n\nAfter.\n"
    shown = screen_after([text[i : i + 7] for i in range(0, len(text), 7)], height=10)
    assert [line.strip() for line in shown] == ["Before.", "", *CODE.splitlines(), "", "After."]


def test_nothing_is_lost_and_blocks_are_one_line_apart() -> None:
    shown = screen_after(
        ["# Title\n\nA\nB <b>\n\n<div>x</div>\n\n- one\n- two\n\n", "```\na\n\n\nb\n```\nend"]
    )
    assert [line.strip() for line in shown] == [
        *("Title", "", "A", "B <b>", "", "<div>x</div>", "", "• one", "• two", ""),
        *("a", "", "", "b", "", "end"),
    ]


def test_what_was_said_stays_on_the_screen_after_an_interrupt() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, color_system=None)
    with pytest.raises(KeyboardInterrupt), MarkdownReply(console) as reply:  # noqa: PT012
        reply.write("Half an ans")
        raise KeyboardInterrupt
    assert Screen().feed(out.getvalue())[0] == "Half an ans"
    assert out.getvalue().rstrip().endswith("Half an ans")
    assert "\x1b[?25h" in out.getvalue()  # the cursor is visible again


@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4), st.text("ab#-=`|\n 1.", max_size=12))
def test_finished_blocks_end_before_the_last_block(blocks: list[str], more: str) -> None:
    text = "".join(blocks)
    cut = finished_length(text)
    assert cut <= text.rfind("\n") + 1
    assert cut == 0 or text[cut - 1] == "\n"
    assert finished_length(text + more) >= cut


def test_an_open_code_block_is_never_cut() -> None:
    text = "Intro.\n\n```\na\n\n# b\n\nc\n"
    assert finished_length(text) == len("Intro.\n\n")
