"""Which tokens a reply's text is made of, however the reply is cut into tokens and pieces."""

from __future__ import annotations

import codecs
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.core import Delta, TokenLogprob
from qwenkit.serve.chat.blocks import Block, Blocks
from qwenkit.text.calls import CallParser
from qwenkit.text.hermes import HermesParser
from qwenkit.text.react_calls import ReActParser

HERMES = '<tool_call>\n{"name": "f", "arguments": {"a": "北"}}\n</tool_call>'
REACT = 'Action: f\nAction Input: {"a": "北"}'
REPLIES = [
    # how, the whole reply, its text
    ("plain", " Grüß dich,\n北京! ", " Grüß dich,\n北京! "),
    ("hermes", f"Let me see: 北\n\n{HERMES}", "Let me see: 北"),
    ("hermes", f" é {HERMES}\nmore", " é"),
    ("hermes", "a <tool_call> b\n ", "a <tool_call> b\n "),
    ("hermes", HERMES, ""),
    ("react", f"Thought: ö ö \n{REACT}", "ö ö"),
    ("react", f"  Thought: \u3000北京 \n{REACT}\nObservation: x", "北京"),
    ("react", "Thought: I know.\nFinal Answer: vier 四 Observation: no", "vier 四 "),
    ("react", "Just text. Action: none", "Just text. Action: none"),
]


def parser(how: str) -> CallParser | None:
    return {"plain": lambda: None, "hermes": HermesParser, "react": ReActParser}[how]()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(ends)]


@pytest.mark.parametrize(("how", "reply", "text"), REPLIES)
@given(st.lists(st.integers(0, 1000), max_size=40), st.lists(st.integers(1, 6), max_size=40))
def test_text_has_the_tokens_that_have_a_byte_of_it(
    how: str, reply: str, text: str, places: list[int], sizes: list[int]
) -> None:
    tokens = cut(reply.encode(), places)
    start = len(reply[: reply.index(text)].encode())
    if how == "react" and "Final" in reply:
        start = len(reply[: reply.index(text, reply.index("Answer: "))].encode())
    end, at, own = start + len(text.encode()), 0, []
    for i, token in enumerate(tokens):
        if at < end and at + len(token) > start:
            own.append(i)
        at += len(token)

    found: list[list[int]] = []
    for groups in (sizes, [len(tokens)]):
        blocks, decoder, left = (
            Blocks(parser(how)),
            codecs.getincrementaldecoder("utf-8")(),
            list(range(len(tokens))),
        )
        grown: list[int] = []
        while left:
            size = groups.pop(0) if groups else 3
            now, left = left[:size], left[size:]
            piece = "".join(decoder.decode(tokens[i]) for i in now)
            logged = tuple(TokenLogprob(i, tokens[i], -1.0) for i in now)
            for change in blocks.read(Delta(piece, logprobs=logged, finish_reason=None if left else "stop")):
                grown += [token.token_id for token in change.tokens]
        spoken: list[Block] = [block for block in blocks.all if block.name is None]
        assert [block.text for block in spoken] == ([text] if text else [])
        assert [token.token_id for block in spoken for token in block.tokens] == grown
        found.append(grown)
    assert found == [own, own] if text else found == [[], []]


def test_a_control_token_that_is_no_text_moves_nothing() -> None:
    blocks = Blocks(None)
    tokens = (b"a", b"<|extra_0|>", "中".encode()[:2], "中".encode()[2:], b"b", b"c and more")
    logged = tuple(TokenLogprob(i, token, -1.0) for i, token in enumerate(tokens))
    blocks.read(Delta("a中", logprobs=logged[:4]))
    blocks.read(Delta("bc", logprobs=logged[4:], finish_reason="stop"))
    assert [token.token_id for token in blocks.all[0].tokens] == [0, 1, 2, 3, 4, 5]


def test_without_log_probabilities_there_are_none() -> None:
    blocks = Blocks(None)
    blocks.read(Delta("a", finish_reason="stop"))
    assert blocks.all[0].tokens == []
