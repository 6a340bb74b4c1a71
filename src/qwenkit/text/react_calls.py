"""Tool use by the models of 2023: ReAct as conversation, as grammar and as replies that arrive in pieces.

One call a step. What the model thinks before its final answer is not shown; before a call it is the content,
as in the original's server (reference: tools section 2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qwenkit.core import Grammar, Message, Tool, ToolUse, Turn
from qwenkit.text import react
from qwenkit.text.calls import Arguments, CallEnded, CallEvent, CallStarted, Content, possible_prefix
from qwenkit.text.json_object import ObjectEnd
from qwenkit.text.tool_schema import RULE_BYTES, arguments_schema

_ACTION, _INPUT, _FINAL, _OBSERVATION = "\nAction:", "\nAction Input: ", "\nFinal Answer: ", react.STOPS[0]
_THOUGHT = "/[^\\n]{0,600}/"
"""Of a reply that may not be plain text: without an end to it a model may never come to its call."""

_MARKERS = re.compile("|".join((_ACTION, _FINAL, _OBSERVATION)))
_LONGEST_MARKER = max(map(len, (_ACTION, _FINAL, _OBSERVATION)))
_CALL = re.compile(r" ([^\n]{1,64})" + _INPUT + r"(?=\{)")


@dataclass(frozen=True)
class ReAct:
    name: str = "react"

    def turns(
        self, messages: Sequence[Message], tools: Sequence[Tool], default_system: str
    ) -> tuple[Turn, ...]:
        """The conversation as the original's server writes it; one that ends with a result or an assistant's
        message goes on in that turn. Raises RequestError as react.parse_messages."""
        functions = [_function(tool) for tool in tools]
        plain = react.parse_messages(messages, functions, default_system=default_system)
        turns = [Turn("system", (plain.system,))]
        for asked, answered in plain.history:
            turns += [Turn("user", (asked,)), Turn("assistant", (answered,))]
        if plain.query is None:
            return (*turns[:-1], Turn("assistant", turns[-1].parts, open=True))
        return (*turns, Turn("user", (plain.query,)))

    def grammar(self, use: ToolUse, answer: Grammar | None = None) -> Grammar:
        """Free text with at most one call at its end, a call after a line of thought, or either that or a
        final answer that follows `answer` (a JSON schema). A step ends before its observation.

        Raises RequestError for schemas that are none, or too large together.
        """
        names = "\n  | ".join(f'"{tool.name}" mid args{i}' for i, tool in enumerate(use.callable))
        rules = [
            f'call: " " ({names})',
            r'mid: "\nAction Input: "',
            *(
                f"// tool {t.name!r}\nargs{i}: %json {arguments_schema(t)}"
                for i, t in enumerate(use.callable)
            ),
        ]
        if use.choice.mode == "required":
            start = rf'{_THOUGHT} "\nAction:" call'
        elif answer is not None:
            start = rf'{_THOUGHT} ("\nAction:" call | "\nFinal Answer: " %json {answer.text})'
        else:
            start = "TEXT | action call | final (TEXT | observed) | observed"
            rules += [
                r"action[lazy]: /(.|\n)*\nAction:/",
                r"final[lazy]: /(.|\n)*\nFinal Answer: /",
                r"observed[lazy]: /(.|\n)*Observation:/",
                r"TEXT: /(.|\n)*/",
            ]
        return Grammar.lark("\n".join([f"start: {start}", *rules]), rule_bytes=RULE_BYTES)

    def parser(self, use: ToolUse, answer: Grammar | None = None) -> ReActParser:
        return ReActParser(free=use.choice.mode != "required" and answer is None)


class ReActParser:
    """A CallParser. Nothing comes out before the reply has reached its call or its final answer.

    free: the reply may be plain text, which "Observation:" ends wherever it stands.
    """

    def __init__(self, *, free: bool = True) -> None:
        self._held = ""
        self._said = 0  # characters of the reply before what is held
        self._free = free
        self._seen = 0  # where the next marker can begin
        self._end: ObjectEnd | None = None  # of the arguments
        self._answering = False
        self._done = False

    def push(self, text: str) -> list[CallEvent]:
        if self._done:
            return []
        self._held += text
        if self._end is None and not self._answering:
            started = self._decide()
        else:
            started = []
        if self._end is not None:
            return started + self._arguments(self._end)
        return started + (self._answer() if self._answering else [])

    def finish(self) -> list[CallEvent]:
        held, self._held = self._held, ""
        done, self._done = self._done, True
        if done or self._end is not None or not held:
            return []
        if not self._answering and held.startswith(_ACTION, self._seen):  # cut before its arguments
            return _thought(held[: self._seen])
        return [Content(held, self._said)]

    def _decide(self) -> list[CallEvent]:
        while found := _MARKERS.search(self._held, self._seen):
            at, marker = found.start(), found.group()
            if marker == _FINAL:
                self._answering, self._held = True, self._held[found.end() :]
                self._said = found.end()
                return []
            if marker == _ACTION:
                call = _CALL.match(self._held, found.end())
                if call:
                    thought, self._held = self._held[:at], self._held[call.end() :]
                    self._end = ObjectEnd()
                    return [*_thought(thought), CallStarted(0, call[1])]
                if _may_be_call(self._held[found.end() :]):
                    self._seen = at
                    return []
            elif self._free:
                text, self._held, self._done = self._held[:at], "", True
                return [Content(text)] if text else []
            self._seen = at + 1
        self._seen = max(self._seen, len(self._held) - _LONGEST_MARKER)
        return []

    def _arguments(self, end: ObjectEnd) -> list[CallEvent]:
        at = end.find(self._held)
        piece, self._held = self._held[:at], ""
        events: list[CallEvent] = [Arguments(0, piece)] if piece else []
        if at is not None:
            events.append(CallEnded(0))
            self._done = True
        return events

    def _answer(self) -> list[CallEvent]:
        at = self._held.find(_OBSERVATION) if self._free else -1
        if at >= 0:
            self._done = True
        else:
            at = len(self._held) - (possible_prefix(self._held, _OBSERVATION) if self._free else 0)
        text, self._held = self._held[:at], self._held[at:]
        self._said += at
        return [Content(text, self._said - at)] if text else []


def _may_be_call(text: str) -> bool:
    """Whether what follows an "Action:" may still become a call, with more text."""
    name, line, rest = text.partition("\n")
    if not line:
        return len(name) <= 65 and " ".startswith(name[:1])
    return name.startswith(" ") and len(name) > 1 and _INPUT.startswith("\n" + rest)


def _thought(text: str) -> list[CallEvent]:
    """What a reply says that begins so and goes on with a call."""
    _, found, after = text.partition("Thought: ")
    said = (after if found else text).lstrip()
    return [Content(said.rstrip(), len(text) - len(said))] if said else []


def _function(tool: Tool) -> dict[str, object]:
    parameters = {"type": "object", "properties": {}} if tool.parameters is None else tool.parameters
    return {
        "name_for_model": tool.name,
        "name_for_human": tool.human_name or tool.name,
        "description_for_model": tool.description,
        "parameters": parameters,
    }
