"""How a chat completion is written: the JSON of a whole one and of its chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qwenkit.core import Delta, FinishReason, Usage
from qwenkit.serve.chat.reader import ReplyReader
from qwenkit.serve.engine.messages import Accepted
from qwenkit.serve.openai.completion import CompletionStream, Envelope, usage_json
from qwenkit.serve.openai.schemas import StreamUsage
from qwenkit.serve.replies.format import Chunks
from qwenkit.serve.replies.logprobs import chat_logprobs
from qwenkit.serve.replies.written import Written
from qwenkit.text.calls import Arguments, CallEvent, CallStarted, Content
from qwenkit.text.tools import Calling


class ChatFormat(CompletionStream):
    """chat.completion and chat.completion.chunk. usage: where it was asked for, OpenAI's chunks say
    `"usage": null`. calling: what replies may call. legacy: calls are written as `function_call`.
    """

    def __init__(
        self,
        envelope: Envelope,
        n: int,
        *,
        usage: StreamUsage,
        calling: Calling | None = None,
        legacy: bool = False,
    ) -> None:
        self._envelope = envelope
        super().__init__(usage)
        self._readers = [ReplyReader(calling.parser() if calling else None) for _ in range(n)]
        self._calling = calling is not None and calling.active
        self._legacy = legacy

    def opening(self, accepted: Sequence[Accepted]) -> Chunks:
        self.count(sum(one.prompt_tokens for one in accepted), 0)
        delta = {"role": "assistant", "content": None if self._calling else ""}
        return [self._chunk(i, delta) for i in range(len(self._readers))]

    def chunk(self, prompt: int, delta: Delta) -> Chunks:
        self.count(0, len(delta.token_ids))
        reader = self._readers[delta.index]
        written = list(self._deltas(reader, reader.read(delta)))
        logprobs = chat_logprobs(delta.logprobs) if delta.logprobs else None
        if logprobs and not written:
            written = [{"content": ""}]
        chunks = [
            self._chunk(delta.index, one, None, None if i else logprobs) for i, one in enumerate(written)
        ]
        if delta.finish_reason is not None:
            chunks.append(self._chunk(delta.index, {}, self._reason(reader, delta.finish_reason)))
        return chunks

    def whole(self, accepted: Sequence[Accepted], written: dict[tuple[int, int], Written]) -> dict[str, Any]:
        choices = []
        for (_, index), choice in sorted(written.items()):
            reader = self._readers[index]
            reader.read(Delta(choice.text, index, finish_reason=choice.finish_reason))
            choices.append(
                {
                    "index": index,
                    "message": self._message(reader),
                    "logprobs": None if choice.logprobs is None else chat_logprobs(choice.logprobs),
                    "finish_reason": choice.finish_reason and self._reason(reader, choice.finish_reason),
                }
            )
        return self._envelope.around("chat.completion", choices)

    def closing(self, usage: Usage) -> Chunks:
        told = self._envelope.around("chat.completion.chunk", [], usage=usage_json(usage))
        return [told] if self._more else []

    def _message(self, reader: ReplyReader) -> dict[str, Any]:
        calls = reader.calls
        message: dict[str, Any] = {"role": "assistant", "content": reader.content, "refusal": None}
        if calls:
            message["content"] = reader.content or None
        if calls and self._legacy:
            message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
        elif calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in calls
            ]
        return message

    def _deltas(self, reader: ReplyReader, events: Sequence[CallEvent]) -> Iterator[dict[str, Any]]:
        for event in events:
            if isinstance(event, Content):
                yield {"content": event.text}
            elif isinstance(event, CallStarted):
                function = {"name": event.name, "arguments": ""}
                more = {"id": reader.id(event.index), "type": "function"}
                yield self._call(event.index, function, more)
            elif isinstance(event, Arguments):
                yield self._call(event.index, {"arguments": event.text}, {})

    def _call(self, index: int, function: dict[str, str], more: dict[str, str]) -> dict[str, Any]:
        if self._legacy:
            return {"function_call": function}
        return {"tool_calls": [{"index": index, **more, "function": function}]}

    def _reason(self, reader: ReplyReader, ended: FinishReason) -> str:
        reason = reader.reason(ended)
        return "function_call" if self._legacy and reason == "tool_calls" else reason

    def _chunk(self, index: int, delta: Any, finish: str | None = None, logprobs: Any = None) -> Any:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._envelope.around("chat.completion.chunk", [choice], **self._more)
