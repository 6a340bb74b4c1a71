"""An engine that says what it is told to, for tests of the HTTP side alone."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from qwenkit.core import Delta, FinishReason, Timings, Usage
from qwenkit.serve.app import create_app
from qwenkit.serve.engine.messages import (
    Accepted,
    Done,
    Embedded,
    EmbeddingInput,
    EngineNumbers,
    ModelCard,
    Piece,
    Pooling,
    Prompt,
)
from qwenkit.serve.engine.reply import Reply, ReplyGroup
from qwenkit.serve.engine.supervisor import Health, Wish
from qwenkit.serve.service import Service
from qwenkit.serve.settings import ServeSettings

PIECES = ("Hel", "lo", " 中")


class StandInEngine:
    """Answers every prompt with PIECES at once, or, if `silent`, never. `wishes` keeps what was asked."""

    def __init__(self, *, silent: bool = False) -> None:
        self.card: ModelCard | None = ModelCard("tiny", 1000, True, 4, "tiny float", hidden_size=2)
        self.now = Health("alive", numbers=EngineNumbers(running=1))
        self.silent = silent
        self.wishes: list[Wish] = []
        self.embeds: list[tuple[list[EmbeddingInput], Pooling]] = []
        self.cancelled = 0
        self.break_with: Exception | None = None
        self.pieces: Sequence[str] = PIECES
        self.finish: FinishReason = "stop"

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def health(self) -> Health:
        return self.now

    def generate(self, wishes: Sequence[Wish]) -> ReplyGroup:
        if self.break_with is not None:
            raise self.break_with
        self.wishes += wishes
        arrived = asyncio.Event()
        replies = [Reply(arrived, self._cancel) for _ in wishes]
        for number, reply in enumerate(replies):
            reply.put(Accepted(number, 3, "prompt"))
            if self.silent:
                continue
            for index in range(wishes[number].params.n):
                for piece in self.pieces:
                    reply.put(Piece(number, Delta(piece, index, (1,))))
                reply.put(Piece(number, Delta("", index, finish_reason=self.finish)))
            reply.put(Done(number, Usage(3, 3 * wishes[number].params.n), Timings()))
        return ReplyGroup(replies, arrived)

    async def tokenize(self, prompt: Prompt, *, parse_special: bool) -> tuple[int, ...]:
        return (1, 2, 3)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return "text"

    async def embed(self, inputs: Sequence[EmbeddingInput], pooling: Pooling) -> Embedded:
        self.embeds.append((list(inputs), pooling))
        if self.break_with is not None:
            raise self.break_with
        try:
            await asyncio.sleep(3600 if self.silent else 0)
        except asyncio.CancelledError:
            self._cancel()
            raise
        return Embedded(1, tuple(struct.pack("<2f", 0.1, i) for i in range(len(inputs))), 7)

    def _cancel(self) -> None:
        self.cancelled += 1


def ask(
    what: Callable[[httpx.AsyncClient], Any], engine: StandInEngine | None = None, **settings: Any
) -> Any:
    """Run `what` with a client of the application over `engine`."""

    async def run() -> Any:
        app = create_app(Service(ServeSettings(**settings), engine or StandInEngine()))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await what(client)

    return asyncio.run(run())


def post(
    path: str, engine: StandInEngine | None = None, *, settings: Any = None, **body: Any
) -> httpx.Response:
    """One request."""

    async def what(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(path, json=body)

    answer: httpx.Response = ask(what, engine, **(settings or {}))
    return answer


def post_bytes(
    path: str, content: bytes, engine: StandInEngine | None = None, *, headers: dict[str, str] | None = None
) -> httpx.Response:
    """One request with this body."""

    async def what(client: httpx.AsyncClient) -> httpx.Response:
        given = {"content-type": "application/json"} if headers is None else headers
        return await client.post(path, content=content, headers=given)

    answer: httpx.Response = ask(what, engine)
    return answer
