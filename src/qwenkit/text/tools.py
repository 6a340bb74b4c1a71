"""How tools are shown to a model, how its calls are enforced and how its replies are read: one interface, and
which implementation a model was trained for."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol, TypeAlias

from qwenkit.core import Choice, Completion, Grammar, Message, RequestError, Tool, ToolUse, Turn
from qwenkit.text.calls import CallParser, read
from qwenkit.text.hermes import CLOSE, OPEN, Hermes
from qwenkit.text.react_calls import ReAct
from qwenkit.text.tokenizer import Tokenizer

ToolFormatName: TypeAlias = Literal["auto", "react", "hermes"]


class ToolFormat(Protocol):
    """answer: a grammar of kind json_schema that text instead of calls must follow.

    What `grammar` lets through, `parser` reads: both take the same arguments.
    """

    @property
    def name(self) -> str: ...

    def turns(
        self, messages: Sequence[Message], tools: Sequence[Tool], default_system: str
    ) -> tuple[Turn, ...]:
        """The conversation as plain turns. Raises RequestError for one the format cannot express."""

    def grammar(self, use: ToolUse, answer: Grammar | None = None) -> Grammar:
        """What the reply must look like. Raises RequestError for schemas that cannot be part of it."""

    def parser(self, use: ToolUse, answer: Grammar | None = None) -> CallParser:
        """A reader for one reply."""


def tool_format(name: ToolFormatName, tokenizer: Tokenizer) -> ToolFormat:
    """The format of this name; auto: Hermes if the vocabulary has its markers as tokens, which are there
    where a model was trained on them, otherwise ReAct. Raises RequestError for another name."""
    tokens = {OPEN, CLOSE} <= tokenizer.special_tokens.keys()
    return format_named(("hermes" if tokens else "react") if name == "auto" else name, tokens=tokens)


def format_named(name: str, *, tokens: bool) -> ToolFormat:
    """The same for who has no tokenizer at hand: tokens says whether it has the markers."""
    if name == "hermes":
        return Hermes(tokens)
    if name == "react":
        return ReAct()
    raise RequestError(f"The tool format {name!r:.60} is unknown.", "Use auto, react or hermes.")


class Calling:
    """The tools of one request: how they are shown, enforced and read.

    answer: what text instead of calls must follow; None is free text. Tools that may not be called are not
    shown. Raises RequestError for an answer that is no JSON schema, which cannot stand beside calls.
    """

    def __init__(self, format: ToolFormat, use: ToolUse, answer: Grammar | None = None) -> None:
        self.active = bool(use.callable) and use.choice.mode != "none"
        if self.active and answer is not None and answer.kind != "json_schema":
            raise RequestError(
                f"A grammar of kind {answer.kind!r} cannot be combined with tools.",
                "Use a JSON schema, or no tools.",
            )
        self._format = format
        self._use = use
        self._answer = answer

    def turns(self, messages: Sequence[Message], default_system: str) -> tuple[Turn, ...]:
        """The conversation as the model reads it. Raises RequestError for one the format cannot express."""
        if not messages:
            raise RequestError("The conversation has no messages.", "Give at least one user message.")
        return self._format.turns(messages, self._use.tools if self.active else (), default_system)

    def grammar(self) -> Grammar | None:
        """What the reply must look like. Raises RequestError for schemas that cannot be part of it."""
        return self._format.grammar(self._use, self._answer) if self.active else self._answer

    def parser(self) -> CallParser | None:
        """A reader for one reply; None where it can have no calls."""
        return self._format.parser(self._use, self._answer) if self.active else None

    def read(self, completion: Completion) -> Completion:
        """With the calls found in the text of each choice, which have ids then."""
        return replace(completion, choices=tuple(map(self._read, completion.choices)))

    def _read(self, choice: Choice) -> Choice:
        if (parser := self.parser()) is None:
            return choice
        spoken = read(parser, choice.text)
        calls = tuple(replace(call, id=new_id()) for call in spoken.calls)
        reason = spoken.reason(choice.finish_reason)
        return replace(choice, text=spoken.content, tool_calls=calls, finish_reason=reason)


def about_calls(message: Message) -> bool:
    """Whether it holds calls or is the result of one, which the plain template cannot say."""
    return bool(message.tool_calls) or message.role in ("tool", "function")


def new_id() -> str:
    """An id for a call, as OpenAI's look."""
    return f"call_{secrets.token_hex(12)}"
