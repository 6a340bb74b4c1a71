"""From a request in Anthropic's words to our messages and tools; errors name the field."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qwenkit.core import Message, ToolCall, ToolChoice, ToolUse
from qwenkit.serve.anthropic.schemas import (
    Conversation,
    MessageField,
    NamedChoice,
    NoChoice,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from qwenkit.serve.chat.tools import tool_of, use_of
from qwenkit.serve.errors import ServeError, invalid_field
from qwenkit.serve.guard.limits import Limits


def conversation(body: Conversation) -> tuple[Message, ...]:
    """Raises ServeError for blocks where they cannot be, and results of calls that were not made."""
    found = [] if body.system is None else [Message("system", _text(body.system))]
    ids: set[str] = set()  # of the calls so far
    for i, message in enumerate(body.messages):
        added = _messages(f"messages.{i}", message, ids)
        ids.update(call.id for one in added for call in one.tool_calls)
        found += added
    return tuple(found)


def tools_of(body: Conversation, limits: Limits) -> ToolUse:
    """What the request allows to be called. Raises ServeError."""
    tools = [
        (tool_of(f"{where}.name", given.name, given.description, given.input_schema), f"{where}.input_schema")
        for where, given in ((f"tools.{i}", given) for i, given in enumerate(body.tools or ()))
    ]
    return use_of(tools, _choice(body), limits, "tools", "tool_choice")


def _choice(body: Conversation) -> ToolChoice:
    asked = body.tool_choice
    if asked is None:
        return ToolChoice()
    if isinstance(asked, NoChoice):
        return ToolChoice("none")
    if isinstance(asked, NamedChoice):
        return ToolChoice.named(asked.name)
    return ToolChoice(
        "required" if asked.type == "any" else "auto", None, not asked.disable_parallel_tool_use
    )


def _messages(where: str, message: MessageField, ids: set[str]) -> list[Message]:
    """One of theirs may be several of ours: results of calls, and then what the user says."""
    if isinstance(message.content, str):
        return [Message(message.role, message.content)]
    texts: list[str] = []
    calls: list[ToolCall] = []
    results: list[Message] = []
    for j, block in enumerate(message.content):
        param = f"{where}.content.{j}"
        if isinstance(block, TextBlock):
            if calls:
                raise _misplaced(param, "comes after a call", "Put text before the tool_use blocks.")
            texts.append(block.text)
        elif isinstance(block, ToolUseBlock):
            if message.role != "assistant":
                raise _misplaced(param, "is a call of the user's", "Only the assistant calls tools.")
            calls.append(ToolCall(block.name, json.dumps(block.input, ensure_ascii=False), block.id))
        else:
            if message.role != "user" or texts:
                raise _misplaced(param, "is a result", "Put tool_result blocks first in a user message.")
            results.append(_result(param, block, ids))
    said = "".join(texts)
    if results and not said:
        return results
    return [*results, Message(message.role, said, tuple(calls))]


def _result(param: str, block: ToolResultBlock, ids: set[str]) -> Message:
    if block.tool_use_id not in ids:
        raise invalid_field(
            f"{param}.tool_use_id",
            f"{param} answers the call {block.tool_use_id[:100]!r}, which no message before it makes.",
            "Send the assistant's message with tool_use before the results.",
        )
    text = _text(block.content or "")
    return Message("tool", f"Error: {text}" if block.is_error else text, tool_call_id=block.tool_use_id)


def _text(content: str | Sequence[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


def _misplaced(param: str, what: str, remedy: str) -> ServeError:
    return invalid_field(param, f"{param} {what}.", remedy)
