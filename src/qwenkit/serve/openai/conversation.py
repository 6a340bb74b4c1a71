"""Messages of chat requests as ours."""

from __future__ import annotations

from collections.abc import Sequence

from qwenkit.core import Message, ToolCall
from qwenkit.serve.errors import ServeError, invalid_field
from qwenkit.serve.openai.schemas import ChatMessage

_OF_ASSISTANTS = ("tool_calls", "function_call")
_OF_RESULTS = ("name", "tool_call_id", "id", "extra")
_SILENT = ("refusal", "audio", "annotations")


def conversation(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Our messages of theirs. Raises ServeError naming the field of what cannot be said to the model."""
    ids: set[str] = set()  # of the calls so far
    found = []
    for i, message in enumerate(messages):
        found.append(_message(f"messages.{i}", message, ids))
        ids.update(call.id for call in found[-1].tool_calls)
    return tuple(found)


def _message(where: str, message: ChatMessage, ids: set[str]) -> Message:
    is_result = message.role in ("tool", "function")
    silent = [*_SILENT, *([] if is_result else _OF_RESULTS)]
    silent += [] if message.role == "assistant" else _OF_ASSISTANTS
    for field in silent:
        if getattr(message, field) not in (None, [], ""):
            raise ServeError(
                f"{where}.{field} is not supported.", "Leave it out.",
                code="unsupported_parameter", param=f"{where}.{field}",
            )  # fmt: skip
    calls = _calls(where, message)
    if message.content is None and not calls:
        raise invalid_field(f"{where}.content", f"{where}.content is null.", "Give a text.")
    answered = _answered(where, message)
    if message.role == "tool":
        if answered is None:
            raise invalid_field(
                f"{where}.tool_call_id", f"{where} has no tool_call_id.", "Say what it answers."
            )
        if answered not in ids:
            raise invalid_field(
                f"{where}.tool_call_id",
                f"{where} answers the call {answered[:100]!r}, which no message before it makes.",
                "Send the assistant's message with tool_calls before the results.",
            )
    content = message.content or ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    return Message(role, text, calls, message.name or "", answered or "")


def _answered(where: str, message: ChatMessage) -> str | None:
    """The call that a result is of: OpenAI's tool_call_id, or Qwen-Agent's id and extra."""
    names = {
        "tool_call_id": message.tool_call_id,
        "id": message.id,
        "extra.function_id": None if message.extra is None else message.extra.function_id,
    }
    said = {name: value for name, value in names.items() if value is not None}
    answered = next(iter(said.values()), None)
    for name, value in said.items():
        if value != answered:
            problem = f"{where} answers two calls, {str(answered)[:100]!r} and {value[:100]!r}."
            raise invalid_field(f"{where}.{name}", problem, "Give tool_call_id alone.")
    return answered


def _calls(where: str, message: ChatMessage) -> tuple[ToolCall, ...]:
    called = message.function_call
    if called is not None:
        if message.tool_calls:
            raise invalid_field(
                f"{where}.function_call", f"{where} has tool_calls and function_call.", "Give one of them."
            )
        return (ToolCall(called.name, called.arguments),)
    return tuple(ToolCall(c.function.name, c.function.arguments, c.id) for c in message.tool_calls or ())
