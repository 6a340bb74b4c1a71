"""How a reply to /v1/responses is written: OpenAI's JSON, whole and as events."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from qwenkit.core import Delta, FinishReason, TokenLogprob, Usage
from qwenkit.serve.chat.blocks import Block, Blocks, Change
from qwenkit.serve.engine.messages import Accepted
from qwenkit.serve.errors import ServeError
from qwenkit.serve.replies.format import Chunks
from qwenkit.serve.replies.logprobs import chat_logprobs
from qwenkit.serve.replies.written import Written
from qwenkit.serve.responses.schemas import ResponsesRequest
from qwenkit.text.calls import CallParser


class ResponsesFormat:
    """body: the request, whose choices come back in the response. parser: of its Calling; None where all is
    text."""

    named = True

    def __init__(self, model: str, body: ResponsesRequest, parser: CallParser | None) -> None:
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._echo = _echo(model, body)
        self._blocks = Blocks(parser)
        self._ids: list[str] = []  # of the items
        self._ended: FinishReason = "abort"
        self._number = 0  # of the next event

    def opening(self, accepted: Sequence[Accepted]) -> Chunks:
        response = self._response("in_progress")
        return [self._event("created", response=response), self._event("in_progress", response=response)]

    def chunk(self, prompt: int, delta: Delta) -> Chunks:
        self._ended = delta.finish_reason or self._ended
        return [event for change in self._blocks.read(delta) for event in self._events(change)]

    def closing(self, usage: Usage) -> Chunks:
        status = self._status()
        return [self._event(status, response={**self._response(status), "usage": self.usage(usage)})]

    def whole(self, accepted: Sequence[Accepted], written: dict[tuple[int, int], Written]) -> dict[str, Any]:
        choice = written[0, 0]
        logprobs = None if choice.logprobs is None else tuple(choice.logprobs)
        self.chunk(0, Delta(choice.text, logprobs=logprobs, finish_reason=choice.finish_reason))
        return self._response(self._status())

    def usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.total_tokens,
        }

    def failure(self, error: ServeError) -> dict[str, Any]:
        """The event that ends a stream whose headers are out."""
        told = {"code": "server_error", "message": str(error)}
        return self._event("failed", response={**self._response("failed"), "error": told})

    def _status(self) -> str:
        return "incomplete" if self._ended == "length" else "completed"

    def _response(self, status: str) -> dict[str, Any]:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": cut,
            **self._echo,
            "output": [self._item(block) for block in self._blocks.all],
            "usage": None,
        }

    def _events(self, change: Change) -> Chunks:
        block = change.block
        if change.kind == "opened":
            self._ids.append(f"{'msg' if block.name is None else 'fc'}_{uuid.uuid4().hex}")
        where = {"item_id": self._ids[block.index], "output_index": block.index}
        if block.name is None:
            return self._text_events(change, where)
        if change.kind == "opened":
            return [self._added(block)]
        if change.kind == "grown":
            return [self._event("function_call_arguments.delta", **where, delta=change.text)]
        done = self._event("function_call_arguments.done", **where, name=block.name, arguments=block.text)
        return [done, self._done(block)]

    def _text_events(self, change: Change, where: dict[str, Any]) -> Chunks:
        block, where = change.block, {**where, "content_index": 0}
        if change.kind == "opened":
            return [self._added(block), self._event("content_part.added", **where, part=_part("", []))]
        logprobs = _logprobs(change.tokens)
        if change.kind == "grown":
            return [self._event("output_text.delta", **where, delta=change.text, logprobs=logprobs)]
        logprobs = _logprobs(block.tokens)
        return [
            self._event("output_text.done", **where, text=block.text, logprobs=logprobs),
            self._event("content_part.done", **where, part=_part(block.text, logprobs)),
            self._done(block),
        ]

    def _added(self, block: Block) -> dict[str, Any]:
        item = self._item(Block(block.index, "", block.name, block.id))  # it may have grown in the same piece
        if block.name is None:
            item["content"] = []
        return self._event("output_item.added", output_index=block.index, item=item)

    def _done(self, block: Block) -> dict[str, Any]:
        return self._event("output_item.done", output_index=block.index, item=self._item(block))

    def _item(self, block: Block) -> dict[str, Any]:
        status = block.status
        if block.name is not None:
            return {
                "type": "function_call",
                "id": self._ids[block.index],
                "call_id": block.id,
                "name": block.name,
                "arguments": block.text,
                "status": status,
            }
        return {
            "type": "message",
            "id": self._ids[block.index],
            "status": status,
            "role": "assistant",
            "content": [_part(block.text, _logprobs(block.tokens))],
        }

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": f"response.{kind}", "sequence_number": self._number - 1, **more}


def _part(text: str, logprobs: Chunks) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _logprobs(tokens: Sequence[TokenLogprob]) -> Chunks:
    found: Chunks = chat_logprobs(tokens)["content"]
    return found


def _echo(model: str, body: ResponsesRequest) -> dict[str, Any]:
    """What a response says of its request."""
    format = body.text.format if body.text else None
    choice = body.tool_choice or "auto"
    return {
        "model": model,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": {"type": "text"} if format is None else format.model_dump(by_alias=True)},
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "metadata": body.metadata or {},
        "user": body.user,
        "truncation": "disabled",
        "store": False,
        "background": False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
    }
