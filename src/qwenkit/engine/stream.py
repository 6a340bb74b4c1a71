"""What a caller holds of a request in progress: its deltas as they come, in a thread or an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from qwenkit.core.completion import Completion, Delta


class Stream:
    """Deltas of one request, to be read once, by one reader: `for`, `async for`, or `result()`.

    The engine does not wait for the reader; what is not read yet is kept. `close` cancels the request and
    frees its blocks at once; so does leaving a loop over the stream, or losing the task that waits for it.
    What ended the request with an error is raised to the reader.
    """

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel = cancel
        self._arrived = threading.Condition()
        self._deltas: deque[Delta] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._wake: Callable[[], object] | None = None

    def __iter__(self) -> Iterator[Delta]:
        try:
            while (delta := self._next()) is not None:
                yield delta
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        with self._arrived:
            self._wake = lambda: loop.call_soon_threadsafe(arrived.set)
        try:
            while True:
                arrived.clear()
                if (delta := self._poll()) is not None:
                    yield delta
                elif self._ended:
                    return
                else:
                    await arrived.wait()
        finally:
            self.close()

    def result(self) -> Completion:
        """Wait for the end; the whole completion. Raises RuntimeError if the stream was closed before."""
        for delta in self:
            if delta.completion is not None:
                return delta.completion
        raise RuntimeError("The stream was closed, or read by somebody else, before its end.")

    def close(self) -> None:
        """Give the request up. Does nothing after its end."""
        with self._arrived:
            if self._ended:
                return
        self._cancel()
        self.end()

    # The engine's side

    def put(self, delta: Delta) -> None:
        """Deliver a delta; one that carries the completion is the last."""
        with self._arrived:
            if not self._ended:
                self._deltas.append(delta)
                self._ended = delta.completion is not None
            self._notify()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come."""
        with self._arrived:
            if not self._ended:
                self._ended, self._error = True, error
            self._notify()

    def _notify(self) -> None:
        self._arrived.notify_all()
        if self._wake is not None:
            try:
                self._wake()
            except RuntimeError:  # the loop was closed: nobody waits any more
                self._wake = None

    def _next(self) -> Delta | None:
        with self._arrived:
            while not self._deltas and not self._ended:
                self._arrived.wait()
        return self._poll()

    def _poll(self) -> Delta | None:
        """What has arrived, None if nothing has; raises the error once everything before it was read."""
        with self._arrived:
            if self._deltas:
                return self._deltas.popleft()
            if self._error is not None:
                raise self._error
            return None
