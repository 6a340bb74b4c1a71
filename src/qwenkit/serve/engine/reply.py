"""Replies on their way from the engine to one client, who may be slow.

The engine never waits: what comes is put here, and what was not fetched yet is joined into one delta for
each choice. So a stream holds at most the reply itself, whose length max_tokens bounds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from qwenkit.core import Delta
from qwenkit.serve.engine.messages import Accepted, Done, Piece, Refused
from qwenkit.serve.errors import ServeError, refused


class Reply:
    """One prompt's reply. `arrived` is set whenever something changed; several replies may share one.

    cancel: called once if the reply is closed before its end.
    """

    def __init__(self, arrived: asyncio.Event, cancel: Callable[[], None]) -> None:
        self.accepted: Accepted | None = None
        self.done: Done | None = None
        self.error: ServeError | None = None
        self._arrived = arrived
        self._cancel = cancel
        self._pending: dict[int, list[Delta]] = {}

    @property
    def ended(self) -> bool:
        """Nothing more will come."""
        return self.done is not None or self.error is not None

    def put(self, message: Accepted | Piece | Done | Refused) -> None:
        if self.ended:
            return
        if isinstance(message, Piece):
            self._pending.setdefault(message.delta.index, []).append(message.delta)
        elif isinstance(message, Accepted):
            self.accepted = message
        elif isinstance(message, Done):
            self.done = message
        else:
            self.error = refused(message)
        self._arrived.set()

    def fail(self, error: ServeError) -> None:
        """End with an error, after what has come; the engine is told to stop."""
        if not self.ended:
            self._cancel()
            self.error = error
            self._arrived.set()

    def close(self) -> None:
        """Give it up. Does nothing after its end."""
        if not self.ended:
            self._cancel()
            self.error = ServeError("The request was given up.", status=499)

    def poll(self) -> Delta | None:
        """All that has come of one choice, as one delta; None if nothing has."""
        if not self._pending:
            return None
        return _joined(self._pending.pop(next(iter(self._pending))))


class ReplyGroup:
    """The replies to all prompts of one HTTP request, read together by one reader."""

    def __init__(self, replies: Sequence[Reply], arrived: asyncio.Event) -> None:
        self.replies = list(replies)
        self._arrived = arrived

    async def accepted(self) -> list[Accepted]:
        """Wait until the engine took every prompt. Raises ServeError for the first it did not."""
        while True:
            self._arrived.clear()
            for reply in self.replies:
                if reply.error is not None:
                    raise reply.error
            found = [reply.accepted for reply in self.replies if reply.accepted is not None]
            if len(found) == len(self.replies):
                return found
            await self._arrived.wait()

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """(number of the prompt, new text), until all have ended. Raises ServeError after what came."""
        while True:
            self._arrived.clear()
            came = False
            for i, reply in enumerate(self.replies):
                if (delta := reply.poll()) is not None:
                    came = True
                    yield i, delta
            if came:
                continue
            for reply in self.replies:
                if reply.error is not None:
                    raise reply.error
            if all(reply.ended for reply in self.replies):
                return
            await self._arrived.wait()

    def fail(self, error: ServeError) -> None:
        for reply in self.replies:
            reply.fail(error)

    def close(self) -> None:
        for reply in self.replies:
            reply.close()


def _joined(deltas: Sequence[Delta]) -> Delta:
    if len(deltas) == 1:
        return deltas[0]
    last = deltas[-1]
    logged = any(delta.logprobs is not None for delta in deltas)
    return replace(
        last,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(one for delta in deltas for one in delta.logprobs or ()) if logged else None,
    )
