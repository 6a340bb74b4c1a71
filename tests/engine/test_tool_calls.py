"""Calls by a model of random weights: whatever it writes, names are known and arguments follow schemas."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_constrained import SCHEMAS

from qwenkit.core import (
    ContextLengthError,
    Grammar,
    Message,
    RequestError,
    SamplingParams,
    Tool,
    ToolChoice,
    ToolUse,
)
from qwenkit.engine import Qwen
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.text import Tokenizer
from qwenkit.text.calls import read
from qwenkit.text.hermes import Hermes
from qwenkit.text.react_calls import ReAct
from qwenkit.text.tool_schema import arguments_schema
from qwenkit.text.tools import ToolFormat

jsonschema = pytest.importorskip("jsonschema", reason="the extra dev has it")
pytest.importorskip("llguidance", reason="the extra grammar has it")

SPECIAL = {
    "<|endoftext|>": 256,
    "<|im_start|>": 257,
    "<|im_end|>": 258,
    "<tool_call>": 259,
    "</tool_call>": 260,
}
FORMATS = [Hermes(tokens=True), Hermes(tokens=False), ReAct()]
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
FLAT = Tool("flat", "", {"type": "object", "properties": {"n": DIGIT}, "required": ["n"]})
TOOLS = (
    FLAT,
    Tool("天气.now"),
    Tool("flat_2", "", {"type": "object", "properties": {"b": {"type": "boolean"}}}),
)
ANSWER = Grammar.json_schema({"enum": ["yes", "no"]})


@pytest.fixture(scope="module")
def qwen() -> Qwen:
    ranks = {bytes([i]): i for i in range(256)}
    words = ["the", '": ', "ab", "\nA", "ction", "<tool", "_call>", '{"name": "', "你", " flat"]
    ranks |= {word.encode(): 266 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(
        ranks, special_tokens=SPECIAL, visible=["<tool_call>", "</tool_call>"], name="small"
    )
    config = ModelConfig(
        architecture="qwen2", vocab_size=304, hidden_size=48, num_layers=1, num_heads=6, num_kv_heads=2,
        head_dim=8, ffn_size=80, rotary_dim=8, rope_base=1e6, seq_length=3000, max_positions=3000,
        tied_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    return Qwen(CausalLM(config).initialize(3), tokenizer)


def say(qwen: Qwen, format: ToolFormat, use: ToolUse, answer: Grammar | None = None, **sampling):
    done = qwen.generate(
        "Go", grammar=format.grammar(use, answer), max_tokens=400, temperature=1.0, **sampling
    )
    return done, read(format.parser(use, answer), done.text)


def check(tools, calls):
    known = {tool.name: tool for tool in tools}
    for call in calls:
        arguments, tool = json.loads(call.arguments), known[call.name]
        jsonschema.Draft202012Validator(json.loads(arguments_schema(tool))).validate(arguments)
        jsonschema.Draft202012Validator(tool.parameters or {}).validate(arguments)


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    schemas=st.lists(SCHEMAS, min_size=1, max_size=3),
    format=st.sampled_from(FORMATS),
    seed=st.integers(0, 2**32),
    parallel=st.booleans(),
)
def test_required_calls_are_valid(qwen, schemas, format, seed, parallel):
    tools = tuple(
        Tool(f"t{i}", "", {"type": "object", "properties": {"x": schema}, "required": ["x"]})
        for i, schema in enumerate(schemas)
    )
    use = ToolUse(tools, ToolChoice("required", parallel=parallel))
    done, spoken = say(qwen, format, use, seed=seed)
    if done.finish_reason == "length":
        return
    assert spoken.reason(done.finish_reason) == "tool_calls"
    assert len(spoken.calls) == 1 or (parallel and isinstance(format, Hermes))
    check(tools, spoken.calls)
    if isinstance(format, Hermes):
        assert spoken.content == ""


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_a_named_tool_is_called_once(qwen, format):
    for name in ("天气.now", "flat"):
        for seed in range(2):
            done, spoken = say(qwen, format, ToolUse(TOOLS, ToolChoice.named(name)), seed=seed)
            assert [call.name for call in spoken.calls] in ([name], []), done.text
            assert spoken.calls or done.finish_reason == "length"
            check(TOOLS, spoken.calls)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_an_answer_by_schema_or_a_call(qwen, format):
    said = set()
    for seed in range(8):
        done, spoken = say(qwen, format, ToolUse(TOOLS), ANSWER, seed=seed)
        if done.finish_reason == "length":
            continue
        check(TOOLS, spoken.calls)
        if not spoken.calls:
            assert spoken.content in ('"yes"', '"no"')
        said.add(bool(spoken.calls))
    assert said


def follows(qwen: Qwen, grammar: Grammar, text: str, tokens: bool = True) -> tuple[int, bool]:
    """How many characters of the text the grammar lets through, and whether it may end there."""
    end = qwen.tokenizer.im_end_id
    matcher = qwen.engine.vocabulary.grammars.compile(grammar).matcher([end])
    ids = qwen.tokenizer.encode(text, allow_special=["<tool_call>", "</tool_call>"] if tokens else False)
    for i, token in enumerate(ids):
        if not matcher.valid([token]):
            return len(qwen.tokenizer.decode(ids[:i])), False
        matcher.accept(token)
    allowed = matcher.allowed()[0]
    return len(text), matcher.finished or bool(allowed[end // 32] >> np.uint32(end % 32) & 1)


CALL = '<tool_call>\n{"name": "flat", "arguments": {"n": 1}}\n</tool_call>'


@pytest.mark.parametrize("format", FORMATS[:2], ids=str)
@pytest.mark.parametrize("before", ["", "Hello <tool_ca 你好\n", "\n\n"])
def test_free_text_and_hermes_calls(qwen, format, before):
    one, many = (format.grammar(ToolUse(TOOLS, ToolChoice(parallel=parallel))) for parallel in (False, True))
    check = partial(follows, qwen, tokens=format.tokens)
    assert check(many, before + "some text") == (len(before) + 9, True)
    assert check(many, before + CALL) == (len(before + CALL), True)
    assert check(one, before + CALL) == (len(before + CALL), True)
    assert check(one, before + CALL + "\n") == (len(before + CALL), False)
    two = before + CALL + "\n" + CALL.replace("1", "2")
    assert check(many, two) == (len(two), True)
    assert check(one, before + CALL + "text") == (len(before + CALL), False)
    assert check(many, before + CALL + "text") == (len(before + CALL) + 4, True)  # and no reader sees it
    assert check(many, before + CALL + "x" * 99)[0] < len(before + CALL) + 40
    assert not read(format.parser(ToolUse(TOOLS)), before + CALL + "text").content.endswith("text")
    wrong = before + '<tool_call>\n{"name": "flatter'
    assert check(many, wrong) == (len(wrong) - 3, False)
    typed = before + '<tool_call>\n{"name": "flat", "arguments": {"n": "'
    assert check(many, typed) == (len(typed) - 1, False)
    for text in (before + CALL, two):
        parsed = read(format.parser(ToolUse(TOOLS)), text)
        assert [call.name for call in parsed.calls] == ["flat"] * text.count("<tool_call>")


def test_calls_without_tags_are_enforced_as_those_with_them(qwen):
    many = Hermes().grammar(ToolUse(TOOLS))
    one = Hermes().grammar(ToolUse(TOOLS, ToolChoice(parallel=False)))
    head = '```json\n{\n  "name": "flat",\n  "arguments": '
    call = head + '{"n": 1}'
    assert follows(qwen, one, call) == (len(call), True)
    assert follows(qwen, one, call + "\n}") == (len(call), False)
    assert follows(qwen, many, call + "\n}\n```") == (len(call) + 6, True)
    two = call + "},\n" + '{"name": "天气.now", "arguments": {}}'
    assert follows(qwen, many, two) == (len(two), True)
    assert [c.name for c in read(Hermes().parser(ToolUse(TOOLS)), two).calls] == ["flat", "天气.now"]
    assert follows(qwen, many, head + '{"x') == (len(head) + 2, False)
    other = call.replace("flat", "fled")
    assert follows(qwen, many, other + " text") == (len(other) + 5, True)
    assert follows(qwen, many, "So: " + head + '{"x') == (len(head) + 7, True)
    required = Hermes().grammar(ToolUse(TOOLS, ToolChoice("required")))
    assert follows(qwen, required, call) == (0, False)


def test_a_marker_in_plain_letters_counts_too(qwen):
    grammar = Hermes(tokens=True).grammar(ToolUse(TOOLS))
    matcher = qwen.engine.vocabulary.grammars.compile(grammar).matcher([258])
    for token in qwen.tokenizer.encode('Hm <tool_call>\n{"name": "flat', allow_special=False):
        assert matcher.valid([token])
        matcher.accept(token)
    assert not matcher.valid(qwen.tokenizer.encode("x"))


def test_free_text_and_react_calls(qwen):
    grammar = ReAct().grammar(ToolUse(TOOLS))
    for text in (
        "plain", "Thought: a\nAction: flat\nAction Input: {\"n\": 1}", "\nAction: 天气.now\nAction Input: {}",
        "Thought: b\nFinal Answer: 42\nAction: none", "Observation:", "x\nFinal Answer: Observation:",
    ):  # fmt: skip
        assert follows(qwen, grammar, text) == (len(text), True)
    for text, length in (
        ("\nAction: fl_", 11), ("\nAction: flat\nAction Input: x", 28), ("Observation: ", 12),
        ("\nFinal Answer: Observation: ", 27), ("\nAction: 天气.now\nAction Input: {}\n", 32),
    ):  # fmt: skip
        assert follows(qwen, grammar, text) == (length, False)


def test_complete_chat_with_tools(qwen):
    messages = [Message("user", "Go")]
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=300, n=2)
    done = qwen.complete_chat(
        messages, params, tools=TOOLS, tool_choice=ToolChoice("required", parallel=False)
    )
    ids = [call.id for choice in done.choices for call in choice.tool_calls]
    assert len(ids) == len(set(ids)) == 2
    assert all(i.startswith("call_") for i in ids)
    assert [choice.finish_reason for choice in done.choices] == ["tool_calls"] * 2
    assert done.tool_calls == done.choices[0].tool_calls
    check(TOOLS, done.tool_calls)
    messages += [
        Message("assistant", done.text, done.tool_calls),
        Message("tool", "done", tool_call_id=done.tool_calls[0].id),
    ]
    again = qwen.complete_chat(messages, max_tokens=5)  # tools may be left out of a later request
    assert again.tool_calls == ()
    silent = qwen.complete_chat(messages, tools=TOOLS, tool_choice=ToolChoice("none"), max_tokens=5)
    assert silent.usage.prompt_tokens == again.usage.prompt_tokens


def test_what_cannot_be_combined_is_refused(qwen):
    with pytest.raises(RequestError, match="regex"):
        qwen.complete_chat([Message("user", "x")], tools=TOOLS, grammar=Grammar.regex("a"))
    with pytest.raises(RequestError, match="no messages"):
        qwen.complete_chat([], tools=TOOLS)
    with pytest.raises(RequestError, match="unknown"):
        qwen.complete_chat([Message("user", "x")], tools=TOOLS, tool_format="json")


def test_a_schema_that_cannot_be_enforced_is_named(qwen):
    bad = Tool("bad_one", "", {"type": "object", "properties": {"x": {"not": {}}}})
    with pytest.raises(RequestError, match=r"for tool 'bad_one' at #/properties/x"):
        qwen.complete_chat([Message("user", "x")], tools=(FLAT, bad))


def test_a_result_of_a_tool_too_long_to_tokenize_is_refused_before(qwen):
    messages = [Message("user", "Go"), Message("tool", " " * 1_000_000, name="flat")]
    with pytest.raises(ContextLengthError, match="has at least"):
        qwen.complete_chat(messages, tools=[FLAT])
