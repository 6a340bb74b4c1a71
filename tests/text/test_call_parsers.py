"""Replies with calls, read whole and in any pieces."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.core import Grammar, Tool, ToolChoice, ToolUse
from qwenkit.text import react
from qwenkit.text.calls import Arguments, CallEnded, CallStarted, Content, Spoken, read
from qwenkit.text.hermes import Hermes, HermesParser
from qwenkit.text.json_object import ObjectEnd
from qwenkit.text.react_calls import ReAct, ReActParser

USE = ToolUse((Tool("f"),))
AWKWARD = [
    "", " ", "\n", "<", "<tool_call", "<tool_call>", "</tool_call>", "\n<tool_call>\n", '{"name": "', '"',
    "Thought: ", "\nAction:", "\nAction: f", "Observation", "Obs", "\nFinal Answer:", "Final", "{", "}", "\\",
    "你好", "a b",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(AWKWARD), st.text(max_size=5)), max_size=8).map("".join)
VALUES = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.none(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
OBJECTS = st.builds(
    lambda value, ascii_, indent: json.dumps(value, ensure_ascii=ascii_, indent=indent),
    st.dictionaries(TEXTS, VALUES, max_size=3), st.booleans(), st.sampled_from([None, 1]),
)  # fmt: skip
CALLS = st.lists(st.tuples(st.sampled_from(["f", "get.weather", "天气"]), OBJECTS), min_size=1, max_size=3)


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(places)]


def joined(events):
    """Events with neighbours of a kind made one."""
    result = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, Content) and isinstance(last, Content):
            result[-1] = Content(last.text + event.text)
        elif isinstance(event, Arguments) and isinstance(last, Arguments) and last.index == event.index:
            result[-1] = Arguments(event.index, last.text + event.text)
        else:
            result.append(event)
    return result


def streamed(parser, parts):
    events = [event for part in parts for event in parser.push(part)]
    return joined(events + parser.finish())


def block(call: tuple[str, str]) -> str:
    return f'<tool_call>\n{{"name": "{call[0]}", "arguments": {call[1]}}}\n</tool_call>'


@given(text=TEXTS, calls=CALLS, cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_hermes_calls_in_any_pieces(text, calls, cuts):
    text = text.replace("<tool_call>", "")
    reply = text + "\n" + "\n".join(map(block, calls))
    spoken = read(HermesParser(), reply)
    assert spoken.content == ("" if text.isspace() else text.rstrip())
    assert [(call.name, call.arguments) for call in spoken.calls] == calls
    assert spoken.reason("stop") == "tool_calls"
    assert spoken.reason("length") == "length"
    assert streamed(HermesParser(), pieces(reply, cuts)) == streamed(HermesParser(), [reply])
    assert streamed(HermesParser(), reply) == streamed(HermesParser(), [reply])


@given(text=TEXTS, cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_what_only_looks_like_a_call_is_content(text, cuts):
    said = streamed(HermesParser(), pieces(text, cuts))
    assert said == streamed(HermesParser(), [text])
    if "<tool_call>" not in text:
        assert said == ([Content(text)] if text else [])
    text += "\n!"  # which no call has where one could be
    assert streamed(HermesParser(), pieces(text, cuts)) == [Content(text)]


@given(calls=CALLS, cut=st.integers(0, 10_000))
def test_a_hermes_reply_cut_anywhere_shows_no_marker(calls, cut):
    reply = "Hi\n" + "\n".join(map(block, calls))
    cut = 3 + len("<tool_call>") + cut % len(reply)
    spoken = read(HermesParser(), reply[:cut])
    assert spoken.content == "Hi"
    for got, call in zip(spoken.calls, calls, strict=False):
        assert got.name == call[0]
        assert call[1].startswith(got.arguments)
    assert spoken.reason("length") == "length"


SPACE = st.sampled_from(["", " ", "\n", "\n  "])


@given(
    calls=CALLS, spaces=st.tuples(SPACE, SPACE, SPACE, SPACE), fenced=st.booleans(), listed=st.booleans(),
    end=st.sampled_from(["", "}", "}\n```", "}\n```\nThis calls f."]),
    cuts=st.lists(st.integers(0, 999), max_size=9),
)  # fmt: skip
def test_calls_without_tags_at_the_beginning(calls, spaces, fenced, listed, end, cuts):
    a, b, c, d = spaces
    heads = [f'{a}{{{b}"name":{c}"{name}",{d}"arguments":{a}{arguments}' for name, arguments in calls]
    reply = ("```json\n" if fenced else "") + ("[" if listed else "") + f"{b}}},\n".join(heads) + end
    names = ["f", "get.weather", "天气"]
    spoken = read(HermesParser(names), reply)
    assert spoken.content == ""
    assert [(call.name, call.arguments) for call in spoken.calls] == calls
    assert spoken.reason("stop") == "tool_calls"
    whole = streamed(HermesParser(names), [reply])
    assert streamed(HermesParser(names), pieces(reply, cuts)) == whole == streamed(HermesParser(names), reply)
    tagged = [Content(reply)]
    assert streamed(HermesParser(), reply) == tagged  # where only tags count
    assert streamed(HermesParser(["other"]), reply) == tagged
    assert streamed(HermesParser(names), "So: " + reply) == [Content("So: " + reply)]


@given(text=TEXTS, cuts=st.lists(st.integers(0, 999), max_size=9))
def test_what_begins_as_a_call_without_tags_and_is_none_is_content(text, cuts):
    text += "\n!"
    for begun in (text, '```json\n{"name": "f"' + text, '{"name": "f", "arguments": ' + text.lstrip("{ \n")):
        assert streamed(HermesParser(["f"]), pieces(begun, cuts)) == [Content(begun)]


def test_events_come_as_early_as_they_can():
    parser = HermesParser()
    assert parser.push("Hi <") == [Content("Hi")]
    assert parser.push("b>\n") == [Content(" <b>")]
    assert parser.push('<tool_call>\n{"name": "f", "arguments": ') == []
    assert parser.push('{"a') == [CallStarted(0, "f"), Arguments(0, '{"a')]
    assert parser.push('": 1}}') == [Arguments(0, '": 1}'), CallEnded(0)]
    assert parser.push("\n</tool_call>") == []
    assert parser.finish() == []


@given(
    thought=TEXTS, name=st.sampled_from(["f", "a.b", "天气"]), arguments=OBJECTS,
    rest=st.sampled_from(["", "\n", "\nObservation: x\nThought: y\nAction: f\nAction Input: {}"]),
    cuts=st.lists(st.integers(0, 10_000), max_size=12),
)  # fmt: skip
def test_react_calls_as_the_original_reads_them(thought, name, arguments, rest, cuts):
    thought = re.sub("Action|Final|Obs", "", thought)
    reply = f"Thought: {thought}\nAction: {name}\nAction Input: {arguments}{rest}"
    spoken = read(ReActParser(), reply)
    if "\nObservation:" not in arguments:  # which the original would cut there
        expected = react.parse_response(reply)
        assert (spoken.content, spoken.calls) == (expected.content, expected.tool_calls)
    assert spoken.calls[0].arguments == arguments
    assert spoken.reason("stop") == "tool_calls"
    assert streamed(ReActParser(), pieces(reply, cuts)) == streamed(ReActParser(), [reply])
    assert streamed(ReActParser(), reply) == streamed(ReActParser(), [reply])


@given(text=TEXTS, answer=TEXTS, cuts=st.lists(st.integers(0, 10_000), max_size=12))
def test_react_answers_as_the_original_reads_them(text, answer, cuts):
    for reply in (text, f"Thought: {text}\nFinal Answer: {answer}"):
        said = streamed(ReActParser(), pieces(reply, cuts))
        assert said == streamed(ReActParser(), [reply])
        upto, _, _ = reply.partition("Observation:")  # a stop of the original's server
        markers = ("\nAction:", "\nFinal Answer: ")
        if sum(upto.count(marker) for marker in markers) <= ("Final" in reply) and "\nAction:" not in upto:
            expected = react.parse_response(upto).content
            assert said == ([Content(expected)] if expected else [])


def test_a_react_answer_streams_once_it_is_reached():
    parser = ReActParser()
    assert parser.push("Thought: I now know the final answer\nFinal Answer:") == []
    assert parser.push(" 4") == [Content("4")]
    assert parser.push("2 Obs") == [Content("2 ")]
    assert parser.push("ervation") == []
    assert parser.push("!") == [Content("Observation!")]


def test_react_arguments_may_say_observation():
    reply = 'Thought: t\nAction: f\nAction Input: {"a": "Observation: x\\nFinal Answer: "}'
    assert read(ReActParser(), reply).calls[0].arguments == '{"a": "Observation: x\\nFinal Answer: "}'
    answer = 'Observation: x\nFinal Answer: {"a": "Observation:"}'
    assert read(ReAct().parser(USE, Grammar.json_object()), answer).content == '{"a": "Observation:"}'
    forced = "Observation: x\nAction: f\nAction Input: {}"
    assert read(ReAct().parser(ToolUse(USE.tools, ToolChoice("required"))), forced).calls
    assert not read(ReAct().parser(USE), forced).calls


@pytest.mark.parametrize(
    "cut", ["\nAction:", "\nAction: f", "\nAction: f\nAction Inp", "\nAction: f\nAction Input: "]
)
def test_a_react_reply_cut_before_its_arguments_shows_its_thought(cut):
    spoken = read(ReActParser(), f"Thought: hm{cut}")
    assert (spoken.content, spoken.calls, spoken.reason("length")) == ("hm", (), "length")


def test_a_cut_call_stays_and_is_none_of_the_finished():
    spoken = read(ReActParser(), 'Thought: hm\nAction: f\nAction Input: {"a": "b')
    assert spoken.calls[0].arguments == '{"a": "b'
    assert (spoken.reason("length"), spoken.reason("stop")) == ("length", "stop")


@given(
    value=st.dictionaries(TEXTS, VALUES, max_size=4),
    rest=TEXTS,
    cuts=st.lists(st.integers(0, 999), max_size=9),
)
def test_the_end_of_an_object(value, rest, cuts):
    text = json.dumps(value, ensure_ascii=False)
    end, at = ObjectEnd(), 0
    for part in pieces(text + rest, cuts):
        found = end.find(part)
        if found is not None:
            at += found
            break
        at += len(part)
    assert at == len(text)


def test_spoken_begins_empty():
    spoken = Spoken()
    assert (spoken.content, spoken.calls, spoken.reason("stop")) == ("", (), "stop")
    assert not Hermes().parser(USE).finish()
