"""A server on a port whose engine says what a test wrote down, for the chat page in a browser."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from standin_engine import StandInEngine

from qwenkit.core import Delta, Message, Timings, Usage
from qwenkit.serve.app import create_app
from qwenkit.serve.engine.messages import Accepted, Done, Piece, Prompt, Refused
from qwenkit.serve.engine.reply import Reply, ReplyGroup
from qwenkit.serve.engine.supervisor import Wish
from qwenkit.serve.service import Service
from qwenkit.serve.settings import ServeSettings

HOLD = object()
"""In a script: wait until the test lets the reply go on."""
BREAK = object()
"""In a script: the engine fails here."""


@dataclass
class ScriptedEngine(StandInEngine):
    """Answers a question with the script of its words; with "You said: ..." where there is none.

    A second question with the same words gets the second script, and the last one from then on. pause:
    seconds between pieces.
    """

    scripts: dict[str, list[Sequence[Any]]] = field(default_factory=dict)
    pause: float = 0.0

    def __post_init__(self) -> None:
        StandInEngine.__init__(self)
        self.go_on = threading.Event()
        self._told: dict[str, int] = {}

    def generate(self, wishes: Sequence[Wish]) -> ReplyGroup:
        if self.break_with is not None:
            raise self.break_with
        self.wishes += wishes
        arrived = asyncio.Event()
        reply = Reply(arrived, self._cancel)
        task = asyncio.ensure_future(self._tell(reply, self._script(wishes[0].prompt)))
        group = ReplyGroup([reply], arrived)
        group.task = task  # type: ignore[attr-defined]  kept alive with the group
        return group

    async def tokenize(self, prompt: Prompt, *, parse_special: bool) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return (7,) if parse_special else tuple(range(len(prompt.split())))
        return tuple(range(sum(len(message.content.split()) for message in prompt)))  # type: ignore[union-attr]

    def _script(self, prompt: Prompt) -> Sequence[Any]:
        if not (prompt and isinstance(prompt[0], Message)):
            words = "(continue)"  # token ids: a reply that goes on
        else:
            words = prompt[-1].content  # type: ignore[union-attr]
        known = self.scripts.get(words)
        if known is None:
            return ["You ", "said: ", words]
        told = self._told.get(words, 0)
        self._told[words] = told + 1
        return known[min(told, len(known) - 1)]

    async def _tell(self, reply: Reply, script: Sequence[Any]) -> None:
        reply.put(Accepted(0, 12, ""))
        tokens = 0
        for piece in script:
            if piece is HOLD:
                while not self.go_on.is_set():
                    if reply.ended:
                        return
                    await asyncio.sleep(0.005)
                self.go_on.clear()
            elif piece is BREAK:
                reply.put(Refused(0, "engine", "The model produced NaN."))
                return
            else:
                reply.put(Piece(0, Delta(piece, 0, (1,))))
                tokens += 1
                await asyncio.sleep(self.pause)
        reply.put(Piece(0, Delta("", 0, finish_reason="stop")))
        reply.put(Done(0, Usage(12, tokens), Timings()))


class PageServer:
    """The application over `engine`, on a free port of loopback, in a thread."""

    def __init__(self, engine: StandInEngine, **settings: Any) -> None:
        self.engine = engine
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        app = create_app(Service(ServeSettings(**settings), engine))
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)
