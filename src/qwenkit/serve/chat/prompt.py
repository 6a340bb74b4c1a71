"""A conversation and its tools as what the engine is asked: the same for every endpoint that chats."""

from __future__ import annotations

from dataclasses import dataclass

from qwenkit.core import Grammar, Message, RequestError, ToolUse
from qwenkit.serve.engine.messages import Prompt
from qwenkit.serve.errors import invalid_field
from qwenkit.serve.service import Service
from qwenkit.text.tools import Calling, about_calls, format_named


@dataclass(frozen=True)
class ChatPrompt:
    """grammar: what the reply must look like. calling: makes the parser of each choice's reply."""

    prompt: Prompt
    grammar: Grammar | None
    calling: Calling


def chat_prompt(
    service: Service,
    messages: tuple[Message, ...],
    use: ToolUse,
    answer: Grammar | None = None,
    *,
    fields: tuple[str, str] = ("messages", "tools"),
) -> ChatPrompt:
    """answer: what text that is no call must follow. fields: what the request calls conversation and tools.

    Raises ServeError for a conversation that the model's tool format cannot express, or tools that are too
    large together.
    """
    card = service.card()
    asked = service.settings.tool_format
    format = format_named(card.tool_format if asked == "auto" else asked, tokens=card.call_tokens)
    field = fields[1]
    try:
        calling = Calling(format, use, answer)
        grammar = calling.grammar()
        field = fields[0]
        if not calling.active and not any(map(about_calls, messages)):
            return ChatPrompt(messages, grammar, calling)
        return ChatPrompt(calling.turns(messages, card.default_system), grammar, calling)
    except RequestError as error:
        raise invalid_field(field, error.problem, error.remedy) from error
