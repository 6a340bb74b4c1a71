"""How a reply to /v1/messages is written: Anthropic's JSON, whole and as events."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from qwenkit.core import Delta, FinishReason, Usage
from qwenkit.serve.chat.blocks import Block, Blocks, Change
from qwenkit.serve.engine.messages import Accepted
from qwenkit.serve.errors import ServeError
from qwenkit.serve.replies.format import Chunks
from qwenkit.serve.replies.written import Written
from qwenkit.text.calls import CallParser

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class AnthropicFormat:
    """parser: of the request's Calling; None where all is text."""

    named = True

    def __init__(self, model: str, parser: CallParser | None) -> None:
        self._model = model
        self._id = f"msg_{uuid.uuid4().hex}"
        self._blocks = Blocks(parser)
        self._ended: tuple[FinishReason, str | int | None] = ("abort", None)

    def opening(self, accepted: Sequence[Accepted]) -> Chunks:
        usage = {"input_tokens": accepted[0].prompt_tokens, "output_tokens": 0}
        message = {**self._message([], None, None), "usage": usage}
        return [{"type": "message_start", "message": message}, {"type": "ping"}]

    def chunk(self, prompt: int, delta: Delta) -> Chunks:
        if delta.finish_reason is not None:
            self._ended = delta.finish_reason, delta.stop_reason
        return [self._event(change) for change in self._blocks.read(delta)]

    def closing(self, usage: Usage) -> Chunks:
        reason, stop = self._stopped()
        delta = {"stop_reason": reason, "stop_sequence": stop}
        return [
            {"type": "message_delta", "delta": delta, "usage": self.usage(usage)},
            {"type": "message_stop"},
        ]

    def whole(self, accepted: Sequence[Accepted], written: dict[tuple[int, int], Written]) -> dict[str, Any]:
        choice = written[0, 0]
        self.chunk(0, Delta(choice.text, finish_reason=choice.finish_reason, stop_reason=choice.stop_reason))
        reason, stop = self._stopped()
        return self._message([_content(block, block.text) for block in self._blocks.all], reason, stop)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """All tokens of the prompt count as input; what was found in the cache is not told apart."""
        return {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}

    def failure(self, error: ServeError) -> dict[str, Any]:
        return error.anthropic_body()

    def _message(self, content: Chunks, reason: str | None, stop: str | None) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
        }

    def _stopped(self) -> tuple[str, str | None]:
        ended, stop = self._ended
        reason = self._blocks.reason(ended)
        if reason == "stop" and isinstance(stop, str):
            return "stop_sequence", stop
        return _REASONS.get(reason, "end_turn"), None

    def _event(self, change: Change) -> dict[str, Any]:
        block = change.block
        if change.kind == "opened":
            content = _content(block, "")
            return {"type": "content_block_start", "index": block.index, "content_block": content}
        if change.kind == "closed":
            return {"type": "content_block_stop", "index": block.index}
        if block.name is None:
            delta = {"type": "text_delta", "text": change.text}
        else:
            delta = {"type": "input_json_delta", "partial_json": change.text}
        return {"type": "content_block_delta", "index": block.index, "delta": delta}


def _content(block: Block, text: str) -> dict[str, Any]:
    if block.name is None:
        return {"type": "text", "text": text}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": _input(text)}


def _input(text: str) -> Any:
    """The arguments as an object; those of a call that was cut short are none."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}
