"""From a request to /v1/responses to our messages and tools; errors name the field."""

from __future__ import annotations

from collections.abc import Sequence

from qwenkit.core import Grammar, Message, ToolCall, ToolChoice, ToolUse
from qwenkit.serve.chat.answers import JSONAnswer, schema_grammar
from qwenkit.serve.chat.tools import tool_of, use_of
from qwenkit.serve.errors import invalid_field
from qwenkit.serve.guard.limits import Limits
from qwenkit.serve.responses.schemas import (
    AllowedTools,
    CallItem,
    InputText,
    Item,
    MessageItem,
    NamedTool,
    OutputText,
    ResponsesRequest,
    SchemaAnswer,
)


def conversation(body: ResponsesRequest) -> tuple[Message, ...]:
    """`instructions` and the system messages the input begins with are one system message; the assistant's
    text and the calls after it one turn. Raises ServeError."""
    items: Sequence[Item] = []
    if isinstance(body.input, str):
        found = [Message("user", body.input)]
    else:
        items, found = body.input, []
    system = [] if body.instructions is None else [body.instructions]
    ids: set[str] = set()
    for i, item in enumerate(items):
        if isinstance(item, MessageItem):
            text = _text(item.content)
            if item.role == "user" or item.role == "assistant":
                found.append(Message(item.role, text))
            elif not found:
                system.append(text)
            else:
                raise invalid_field(f"input.{i}.role", f"input.{i} is a {item.role} message after others.",
                               "Put it first, or say it as the user.")  # fmt: skip
        elif isinstance(item, CallItem):
            ids.add(item.call_id)
            call = ToolCall(item.name, item.arguments, item.call_id)
            before = found.pop() if found and found[-1].role == "assistant" else Message("assistant")
            found.append(Message("assistant", before.content, (*before.tool_calls, call)))
        else:
            if item.call_id not in ids:
                raise invalid_field(
                    f"input.{i}.call_id",
                    f"input.{i} answers the call {item.call_id[:100]!r}, which no item before it makes.",
                    "Send the function_call before its output.",
                )
            found.append(Message("tool", _text(item.output), tool_call_id=item.call_id))
    if not found:
        raise invalid_field(
            "input", "The input has no message but the system's.", "Say something as the user."
        )
    return (*([Message("system", "\n\n".join(system))] if system else []), *found)


def tools_of(body: ResponsesRequest, limits: Limits) -> ToolUse:
    """What the request allows to be called. Raises ServeError."""
    tools = [
        (tool_of(f"tools.{i}.name", given.name, given.description, given.parameters), f"tools.{i}.parameters")
        for i, given in enumerate(body.tools or ())
    ]
    return use_of(tools, _choice(body), limits, "tools", "tool_choice")


def answer(body: ResponsesRequest, limits: Limits) -> Grammar | None:
    """What text.format demands. Raises ServeError for a schema that cannot be enforced."""
    wanted = body.text.format if body.text else None
    if isinstance(wanted, JSONAnswer):
        return Grammar.json_object()
    if isinstance(wanted, SchemaAnswer):
        return schema_grammar(wanted.schema_, limits, "text.format")
    return None


def _choice(body: ResponsesRequest) -> ToolChoice:
    asked, parallel = body.tool_choice, body.parallel_tool_calls is not False
    if isinstance(asked, NamedTool):
        return ToolChoice.named(asked.name)
    if isinstance(asked, AllowedTools):
        return ToolChoice(asked.mode, tuple(tool.name for tool in asked.tools), parallel)
    return ToolChoice(asked or "auto", parallel=parallel)


def _text(content: str | Sequence[InputText | OutputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
