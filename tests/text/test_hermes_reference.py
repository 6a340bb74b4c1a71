"""Prompts with tools against the checkpoint's own chat template, rendered by transformers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core import Message, Tool, ToolCall
from qwenkit.text import Tokenizer, chatml
from qwenkit.text.hermes import Hermes

pytestmark = pytest.mark.model

WORDS = st.lists(
    st.sampled_from(["Hi", " there", "\n", "  ", "你好", "é", "{", '"x"', "<b>", "'", "&", "🙂", "1.0"]),
    min_size=1, max_size=6,
).map("".join).filter(lambda text: text == text.strip() and text)  # fmt: skip
NAMES = st.sampled_from(["get_weather", "math.add", "天气"])
VALUES = st.one_of(WORDS, st.integers(), st.booleans(), st.none(), st.just(1.5), st.just([1, {"a": "ü"}]))
ARGUMENTS = st.dictionaries(WORDS, VALUES, max_size=3)
CALLS = st.lists(st.tuples(NAMES, ARGUMENTS), min_size=1, max_size=3)
STEPS = st.tuples(st.one_of(st.just(""), WORDS), CALLS)
TURNS = st.tuples(WORDS, st.lists(STEPS, max_size=2), WORDS)
SCHEMAS = st.dictionaries(st.sampled_from(["type", "title", "ключ"]), VALUES, max_size=3)
TOOLS = st.lists(st.tuples(NAMES, st.one_of(st.just(""), WORDS), st.one_of(st.none(), SCHEMAS)), max_size=3)


@pytest.fixture(scope="module")
def demo() -> tuple[Tokenizer, str, str]:
    from qwenkit.checkpoint import locate, open_checkpoint

    checkpoint = open_checkpoint(locate("demo-0.5b").path)
    assert checkpoint.chat_template is not None
    return checkpoint.tokenizer(), checkpoint.chat_template, checkpoint.generation.default_system


@settings(max_examples=300)
@given(system=st.one_of(st.none(), WORDS), tools=TOOLS, turns=st.lists(TURNS, max_size=3), last=WORDS)
def test_prompts_are_those_of_the_checkpoints_template(demo, system, tools, turns, last):
    from transformers.utils.chat_template_utils import render_jinja_template

    tokenizer, template, default_system = demo
    ours: list[Message] = [] if system is None else [Message("system", system)]
    theirs: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    for asked, steps, answered in turns:
        ours.append(Message("user", asked))
        theirs.append({"role": "user", "content": asked})
        for content, calls in steps:
            written = tuple(ToolCall(name, json.dumps(a, separators=(",", ":"))) for name, a in calls)
            ours.append(Message("assistant", content, written))
            as_dicts = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
            theirs.append({"role": "assistant", "content": content, "tool_calls": as_dicts})
            for name, _ in calls:
                ours.append(Message("tool", f"result of {name}"))
                theirs.append({"role": "tool", "content": f"result of {name}"})
        ours.append(Message("assistant", answered))
        theirs.append({"role": "assistant", "content": answered})
    ours.append(Message("user", last))
    theirs.append({"role": "user", "content": last})
    functions = []
    for name, description, parameters in tools:
        function: dict[str, Any] = {"name": name}
        function |= {"description": description} if description else {}
        function |= {} if parameters is None else {"parameters": parameters}
        functions.append({"type": "function", "function": function})
    (expected,), _ = render_jinja_template(
        [theirs], tools=functions or None, chat_template=template, add_generation_prompt=True
    )
    prompt = Hermes().turns(ours, [Tool(*tool) for tool in tools], default_system)
    assert chatml.render_turns(prompt) == expected
    assert chatml.encode_turns(tokenizer, prompt) == tokenizer.encode(expected, allow_special=True)
