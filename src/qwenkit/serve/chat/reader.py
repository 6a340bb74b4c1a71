"""One choice's reply as events: text, calls that begin, their arguments; whatever endpoint writes them."""

from __future__ import annotations

from qwenkit.core import Delta, FinishReason, ToolCall
from qwenkit.text.calls import CallEvent, CallParser, CallStarted, Content, Spoken
from qwenkit.text.tools import new_id


class ReplyReader:
    """parser: of the request's Calling; None where all is text."""

    def __init__(self, parser: CallParser | None) -> None:
        self._parser = parser
        self._spoken = Spoken()
        self._ids: list[str] = []
        self._read = 0  # characters

    def read(self, delta: Delta) -> list[CallEvent]:
        """What the next piece of the reply says; with its finish_reason, also what was held back."""
        if self._parser is None:
            events: list[CallEvent] = [Content(delta.text, self._read)] if delta.text else []
            self._read += len(delta.text)
        else:
            events = self._parser.push(delta.text)
            if delta.finish_reason is not None:
                events += self._parser.finish()
        self._ids += [new_id() for event in events if isinstance(event, CallStarted)]
        self._spoken.add(events)
        return events

    def id(self, index: int) -> str:
        """Of a call that has begun."""
        return self._ids[index]

    @property
    def content(self) -> str:
        """All text so far."""
        return self._spoken.content

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """All calls so far."""
        pairs = zip(self._spoken.calls, self._ids, strict=True)
        return tuple(ToolCall(call.name, call.arguments, id_) for call, id_ in pairs)

    def reason(self, ended: FinishReason) -> FinishReason:
        """ "tool_calls" for a reply that ended with a whole call."""
        return self._spoken.reason(ended)
