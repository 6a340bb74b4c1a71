"""Messages as bytes on the socket between our two processes: a length, then a pickle.

Pickle, because the messages are our own dataclasses and arrive as exactly those, without a second schema to
keep in step and without a dependency; and with an unpickler that knows these classes and no other name, so
that neither a torn frame nor an engine gone wrong can make the other process, which holds the keys, run
anything.
"""

from __future__ import annotations

import asyncio
import io
import pickle
import struct
from collections.abc import Sequence
from typing import Any

from qwenkit.core import (
    Control,
    Delta,
    Grammar,
    Infill,
    Message,
    SamplingParams,
    Timings,
    TokenLogprob,
    ToolCall,
    Turn,
    Usage,
)
from qwenkit.serve.engine import messages

_HEAD = struct.Struct(">I")
_LARGEST = 256 << 20  # bytes of a frame; more is a mistake
_CORE = (
    Control, Delta, Grammar, Infill, Message, SamplingParams, Timings, TokenLogprob, ToolCall, Turn, Usage,
)  # fmt: skip
_OWN = tuple(v for v in vars(messages).values() if isinstance(v, type) and v.__module__ == messages.__name__)
_CLASSES = {(c.__module__, c.__qualname__): c for c in (*_CORE, *_OWN)}


class WireError(Exception):
    """What came over the socket is no message of ours."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _CLASSES[module, name]
        except KeyError:
            raise WireError(f"A frame names {module}.{name}, which is no message.") from None


def pack(batch: Sequence[Any]) -> bytes:
    """A frame of several messages."""
    body = pickle.dumps(list(batch), protocol=5)
    return _HEAD.pack(len(body)) + body


async def receive(reader: asyncio.StreamReader) -> list[Any]:
    """The next frame's messages. Raises EOFError when the other end is gone, WireError for nonsense."""
    try:
        (length,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if length > _LARGEST:
            raise WireError(f"A frame says it has {length} bytes, the limit is {_LARGEST}.")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError("The other process closed the connection.") from error
    try:
        batch = _Unpickler(io.BytesIO(body)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError) as error:
        raise WireError(f"A frame of {length} bytes cannot be read.") from error
    if not isinstance(batch, list):
        raise WireError(f"A frame holds {type(batch).__name__} and no list.")
    return batch


class Outbox:
    """Sends what one turn of the event loop produced as one frame. For the loop's own thread only."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._waiting: list[Any] = []

    def put(self, message: Any) -> None:
        """Send soon, in order; nothing happens if the other end is gone."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(message)

    async def drained(self) -> None:
        """Wait while the other process takes nothing."""
        try:
            await self._writer.drain()
        except ConnectionError:  # the reader of this socket sees the end and acts on it
            return

    def _flush(self) -> None:
        batch, self._waiting = self._waiting, []
        if not self._writer.is_closing():
            self._writer.write(pack(batch))
