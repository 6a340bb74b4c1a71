"""Tool use in the Hermes format, as the chat template of Qwen2.5 writes it and its models were trained.

The tools stand in the system turn as JSON, a call is JSON between `<tool_call>` and `</tool_call>`, and
results come back in a user turn. Knows no HTTP and runs no tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from qwenkit.core import Control, Grammar, Message, RequestError, Tool, ToolCall, ToolUse, Turn
from qwenkit.text.bare_calls import bare_head, bare_rules
from qwenkit.text.calls import (
    Arguments,
    CallEnded,
    CallEvent,
    CallStarted,
    Content,
    possible_prefix,
)
from qwenkit.text.json_object import ObjectEnd
from qwenkit.text.tool_schema import RULE_BYTES, arguments_schema

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_OPEN, _CLOSE = Control(OPEN), Control(CLOSE)
_RESULT, _END_RESULT = Control("<tool_response>"), Control("</tool_response>")

_HEAD = '\n{"name": "'
_MIDDLE = '", "arguments": '
_NEXT = f"}}\n{CLOSE}\n{OPEN}"
"""Between the arguments of a call and the head of the next."""
_NAME_END = re.compile(r'["\\\n]')
_LONGEST_NAME = 64

_BEFORE_TOOLS = """\n
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>"""
_AFTER_TOOLS = """
</tools>

For each function call, return a json object with function name and arguments within """


@dataclass(frozen=True)
class Hermes:
    """tokens: whether the markers of a call are control tokens of the vocabulary; otherwise they are text."""

    tokens: bool = True
    name: str = "hermes"

    def turns(
        self, messages: Sequence[Message], tools: Sequence[Tool], default_system: str
    ) -> tuple[Turn, ...]:
        """The conversation with its calls and results, and the tools in its system turn.

        Raises RequestError for a system message that is not the first.
        """
        messages = list(messages)
        first = bool(messages) and messages[0].role == "system"
        system: list[str | Control] = [messages.pop(0).content if first else default_system]
        if tools:
            system += _described(tools)
        turns = [Turn("system", tuple(system))]
        for are_results, group in groupby(messages, lambda message: message.role in ("tool", "function")):
            together = list(group)
            turns += [_results(together)] if are_results else map(_turn, together)
        return tuple(turns)

    def grammar(self, use: ToolUse, answer: Grammar | None = None) -> Grammar:
        """Free text, or text that follows `answer` (a JSON schema), or calls; what the choice allows of it.

        Raises RequestError for schemas that are none, or too large together.
        """
        choice, tools = use.choice, use.callable
        opening, closing = (OPEN, CLOSE) if self.tokens else (json.dumps(OPEN), json.dumps(CLOSE))
        calls = f'call ("\\n" {opening} call)* rest?' if choice.parallel else "call"
        names = "\n  | ".join(f'"{tool.name}" mid args{i}' for i, tool in enumerate(tools))
        rules = [
            f"call: {json.dumps(_HEAD)} ({names}) {json.dumps('}' + chr(10))} {closing}",
            f"mid: {json.dumps(_MIDDLE)}",
            *(f"// tool {t.name!r}\nargs{i}: %json {arguments_schema(t)}" for i, t in enumerate(tools)),
        ]
        if choice.parallel:  # where the model would rather say something else than call again
            rules.append(r"rest: /(\n?[^\n<]|\n\n)(.|\n){0,30}/")
        if choice.mode == "required":
            start = f"{opening} {calls}"
        elif answer is not None:
            start = f"%json {answer.text} | {opening} {calls}"
        else:
            # The marker counts however it is spelled, for who reads the text cannot tell.
            first = f"{opening} | TEXT {opening} | spelled" if self.tokens else "spelled"
            start = (
                f"TEXT | open {calls} | bare{' (between? bare)* between? after?' if choice.parallel else ''}"
            )
            rules += [
                f"open: {first}", f"spelled[lazy]: /(.|\\n)*{OPEN}/", r"TEXT: /(.|\n)*/",
                f"bare: {' | '.join(f'bare{i} space? args{i}' for i in range(len(tools)))}",
                *bare_rules([tool.name for tool in tools]),
            ]  # fmt: skip
        return Grammar.lark("\n".join([f"start: {start}", *rules]), rule_bytes=RULE_BYTES)

    def parser(self, use: ToolUse, answer: Grammar | None = None) -> HermesParser:
        free = use.choice.mode != "required" and answer is None
        return HermesParser([tool.name for tool in use.callable] if free else ())


class HermesParser:
    """A CallParser. White space between text and calls belongs to the format, and text after a call is none.

    names: tools that count without tags, too, at the beginning of the reply.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = names
        self._bare = bool(names)  # the reply may begin so, or has
        self._held = ""
        self._said = 0  # characters of the reply before what is held
        self._gap = ""  # white space at the end of the text so far
        self._calls = 0
        self._end: ObjectEnd | None = None  # of the arguments being read
        self._done = False

    def push(self, text: str) -> list[CallEvent]:
        self._held += text
        events: list[CallEvent] = []
        while self._step(events):
            continue
        return events

    def finish(self) -> list[CallEvent]:
        begun = self._end is not None or self._calls or self._held.startswith(OPEN)
        held, self._held = self._gap + self._held, ""
        if begun or not held:
            return []
        return [Content(held, self._said - len(self._gap))]

    def _step(self, events: list[CallEvent]) -> bool:
        """Go on as far as one marker; False if that takes more text."""
        if self._done:
            self._held = ""
        if not self._held:
            return False
        if self._end is not None:
            return self._arguments(self._end, events)
        found = self._find(events)
        if found is None:
            return False
        name, start = found
        if name:
            self._start(name, start, events)
        elif self._calls:
            self._done = True
        elif self._bare:
            self._bare = False
        else:  # a marker with no call behind it
            self._say(len(OPEN), events)
        return True

    def _find(self, events: list[CallEvent]) -> tuple[str, int] | None:
        """The next call, as in bare_head; text before the first is given out."""
        if self._bare:
            return bare_head(self._held, self._names, first=not self._calls)
        if self._calls:
            return _head(self._held, _NEXT)
        at = self._held.find(OPEN)
        self._say(at if at >= 0 else len(self._held) - possible_prefix(self._held, OPEN), events)
        return _head(self._held, OPEN) if at >= 0 else None

    def _start(self, name: str, length: int, events: list[CallEvent]) -> None:
        """A call whose arguments come after so many characters."""
        self._gap = ""
        self._held = self._held[length:]
        self._end = ObjectEnd()
        events.append(CallStarted(self._calls, name))

    def _arguments(self, end: ObjectEnd, events: list[CallEvent]) -> bool:
        at = end.find(self._held)
        piece = self._held[:at]
        if piece:
            events.append(Arguments(self._calls, piece))
        if at is None:
            self._held = ""
            return False
        events.append(CallEnded(self._calls))
        self._held = self._held[at:]
        self._calls += 1
        self._end = None
        return True

    def _say(self, length: int, events: list[CallEvent]) -> None:
        """Give out so much of what is held, but for white space at its end."""
        self._bare = False
        said, self._held = self._held[:length], self._held[length:]
        text = said.rstrip()
        if text:
            events.append(Content(self._gap + text, self._said - len(self._gap)))
            self._gap = ""
        self._gap += said[len(text) :]
        self._said += length


def _head(text: str, before: str) -> tuple[str, int] | None:
    """The name of the call after `before`, and where its arguments begin; None: it takes more text to tell;
    ("", 0): there is none."""
    before += _HEAD
    if not text.startswith(before):
        return None if before.startswith(text) else ("", 0)
    found = _NAME_END.search(text, len(before))
    if found is None:
        return None if len(text) - len(before) <= _LONGEST_NAME else ("", 0)
    rest = text[found.start() :]
    if not rest.startswith(_MIDDLE + "{"):
        return None if (_MIDDLE + "{").startswith(rest) else ("", 0)
    return text[len(before) : found.start()], found.start() + len(_MIDDLE)


def _described(tools: Sequence[Tool]) -> list[str | Control]:
    lines = "".join(f"\n{_json(_description(tool))}" for tool in tools)
    return [
        f"{_BEFORE_TOOLS}{lines}{_AFTER_TOOLS}", _OPEN, _CLOSE, " XML tags:\n", _OPEN,
        '\n{"name": <function-name>, "arguments": <args-json-object>}\n', _CLOSE,
    ]  # fmt: skip


def _description(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    return {"type": "function", "function": function}


def _turn(message: Message) -> Turn:
    if message.role == "system":
        raise RequestError("A system message comes after others.", "Only the first message may be one.")
    assert message.role in ("user", "assistant")
    if not message.tool_calls:
        return Turn(message.role, (message.content,))
    parts: list[str | Control] = [message.content] if message.content else []
    for call in message.tool_calls:
        parts += [*(["\n"] if parts else []), _OPEN, _call(call), _CLOSE]
    return Turn(message.role, tuple(parts))


def _call(call: ToolCall) -> str:
    try:
        arguments = _json(json.loads(call.arguments))
    except (ValueError, RecursionError):  # what the model wrote stays what it wrote
        arguments = call.arguments
    return f"{_HEAD}{call.name}{_MIDDLE}{arguments}}}\n"


def _results(messages: Sequence[Message]) -> Turn:
    parts: list[str | Control] = []
    for message in messages:
        parts += [*(["\n"] if parts else []), _RESULT, f"\n{message.content}\n", _END_RESULT]
    return Turn("user", tuple(parts))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=dict)
