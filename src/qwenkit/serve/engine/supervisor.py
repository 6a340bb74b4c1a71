"""Keeps an engine's process running, and passes messages to and from it.

When the process ends, whoever waits for it hears of it at once, and it is started again: immediately the
first time, then after pauses that double. Lives on one event loop; imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from qwenkit.core import SamplingParams
from qwenkit.serve.engine import messages as m
from qwenkit.serve.engine.reply import Reply, ReplyGroup
from qwenkit.serve.engine.watchdog import Watchdog
from qwenkit.serve.engine.wire import Outbox, WireError, receive
from qwenkit.serve.errors import ServeError, engine_unavailable, refused
from qwenkit.serve.guard.keys import VARIABLE

EngineState: TypeAlias = Literal["loading", "alive", "stalled", "restarting", "failed", "stopped"]

COMMAND = (sys.executable, "-c", "from qwenkit.serve.engine.process import main; main()")
_TICK_S = 0.5  # between two looks of the watchdog
_PAUSES_S = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
_SETTLED_S = 60.0  # alive for so long, a death counts as the first again


@dataclass(frozen=True)
class Wish:
    """One prompt and what is asked of it, before it has an id; fields as in messages.Generate."""

    prompt: m.Prompt
    params: SamplingParams
    prompt_logprobs: int | None = None
    generate: bool = True


@dataclass(frozen=True)
class Health:
    """How the engine is now; `reason` says why where it is not alive. Numbers are its last ones."""

    state: EngineState
    reason: str = ""
    restarts: int = 0
    pid: int | None = None
    alive_s: float = 0.0
    numbers: m.EngineNumbers = field(default_factory=m.EngineNumbers)


class EngineClient(Protocol):
    """What the routes use of a Supervisor. Methods raise ServeError when the engine cannot be asked."""

    @property
    def card(self) -> m.ModelCard | None: ...
    def health(self) -> Health: ...
    def generate(self, wishes: Sequence[Wish]) -> ReplyGroup: ...
    async def tokenize(self, prompt: m.Prompt, *, parse_special: bool) -> tuple[int, ...]: ...
    async def detokenize(self, token_ids: Sequence[int]) -> str: ...
    async def embed(self, inputs: Sequence[m.EmbeddingInput], pooling: m.Pooling) -> m.Embedded: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class Supervisor:
    """`loaded` becomes the card of the model when it is first there, or the ServeError why it cannot be.

    command: what to start; the descriptor of the socket is appended. step_s: see Watchdog.
    """

    def __init__(
        self, config: m.EngineConfig, command: Sequence[str] = COMMAND, *, step_s: float = 0.0
    ) -> None:
        self.card: m.ModelCard | None = None
        self.loaded: asyncio.Future[m.ModelCard] | None = None
        self._config = config
        self._command = tuple(command)
        self._ids = itertools.count(1)
        self._replies: dict[int, Reply] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._outbox: Outbox | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._state: EngineState = "loading"
        self._reason = ""
        self._restarts = 0
        self._since = 0.0
        self._watchdog = Watchdog(step_s)
        self._numbers = m.EngineNumbers()

    # Asking

    def health(self) -> Health:
        alive = self._state == "alive"
        state, reason = self._state, self._reason
        if alive and (wrong := self._watchdog.stalled):
            state, reason = "stalled", wrong
        pid = None if self._process is None else self._process.pid
        alive_s = time.monotonic() - self._since if alive else 0.0
        return Health(state, reason, self._restarts, pid, alive_s, self._numbers)

    def generate(self, wishes: Sequence[Wish]) -> ReplyGroup:
        """Send prompts; cancelling one that has not ended is closing the group."""
        outbox, arrived = self._open(), asyncio.Event()
        replies = []
        for wish in wishes:
            id_ = next(self._ids)
            reply = self._replies[id_] = Reply(arrived, lambda id_=id_: self._give_up(id_))  # type: ignore[misc]
            params = wish.params
            outbox.put(m.Generate(id_, wish.prompt, params, wish.prompt_logprobs, wish.generate))
            replies.append(reply)
        return ReplyGroup(replies, arrived)

    async def tokenize(self, prompt: m.Prompt, *, parse_special: bool) -> tuple[int, ...]:
        answer = await self._ask(m.Tokenize(next(self._ids), prompt, parse_special))
        return tuple(answer.token_ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        answer = await self._ask(m.Detokenize(next(self._ids), tuple(token_ids)))
        return str(answer.text)

    async def embed(self, inputs: Sequence[m.EmbeddingInput], pooling: m.Pooling) -> m.Embedded:
        answer: m.Embedded = await self._ask(m.Embed(next(self._ids), tuple(inputs), pooling))
        return answer

    async def _ask(self, question: m.Tokenize | m.Detokenize | m.Embed) -> Any:
        outbox = self._open()
        answer = self._answers[question.id] = asyncio.get_running_loop().create_future()
        outbox.put(question)
        try:
            return await answer
        finally:
            if self._answers.pop(question.id, None) is not None:
                self._give_up(question.id)

    def _open(self) -> Outbox:
        if self._state != "alive" or self._outbox is None:
            raise engine_unavailable(self._state, self._reason)
        return self._outbox

    def _give_up(self, id_: int) -> None:
        self._replies.pop(id_, None)
        if self._state == "alive" and self._outbox is not None:
            self._outbox.put(m.Cancel(id_))

    # Keeping it running

    async def start(self) -> None:
        """Start the process; returns before the model is loaded."""
        self.loaded = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        """End the process; whoever still waits gets an error."""
        self._state, self._reason = "stopped", "the server is shutting down"
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._fail_all(engine_unavailable("stopped", self._reason))

    async def _keep_running(self) -> None:
        deaths = 0
        while True:
            how = await self._run_once()
            hung = self._watchdog.hopeless
            if self._since and time.monotonic() - self._since > _SETTLED_S:
                deaths = 0
            if self._state != "failed":
                self._state, self._reason = "restarting", how
            pid, self._since = "" if self._process is None else f" (pid {self._process.pid})", 0.0
            self._fail_all(
                ServeError(
                    f"The engine's process {how} while it worked on this request.",
                    "It is being restarted; try again.",
                    status=503,
                    code="engine_hung" if hung else "engine_died",
                    retry_after=2,
                )
            )
            pause = _PAUSES_S[min(deaths, len(_PAUSES_S) - 1)]
            _say(f"engine{pid} {how}; starting it again in {pause:.0f} s")
            deaths += 1
            await asyncio.sleep(pause)
            self._restarts += 1

    async def _run_once(self) -> str:
        """One life of the process; returns how it ended."""
        self._watchdog.begin()
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            return f"did not start ({error.strerror})"
        environment = {
            # With a heap for each thread, each keeps what it once took (docs/performance.md, Serving).
            "MALLOC_ARENA_MAX": "2",
            **os.environ,
            "PYTHONSAFEPATH": "1",  # nothing is imported from where we stand
        }
        environment.pop(VARIABLE, None)  # the engine has no use for keys
        try:
            # Not asyncio's: its kill() may reap the child behind its back and lose how it ended.
            process = subprocess.Popen(
                [*self._command, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment,
                stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            return f"did not start ({error.strerror})"
        finally:
            theirs.close()
        self._process = process
        reader, writer = await asyncio.open_connection(sock=ours)
        reading = asyncio.create_task(self._read(reader, Outbox(writer)))
        ending = asyncio.get_running_loop().run_in_executor(None, process.wait)
        watching = asyncio.create_task(self._watch())
        both: list[asyncio.Future[Any]] = [reading, ending, watching]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)  # either is heard of at once
        finally:
            self._outbox = None
            if self._state == "alive":
                self._state = "restarting"
            writer.close()
            reading.cancel()
            watching.cancel()
            process.kill()
            code = await asyncio.shield(ending)
        if self._watchdog.hopeless:
            return f"was ended, for {self._watchdog.stalled},"
        return self._reason if self._state == "failed" else _how(code)

    async def _watch(self) -> None:
        """Returns when the engine hangs."""
        before = time.monotonic()
        while not self._watchdog.hopeless:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            if self._state == "alive":  # loading takes as long as it takes
                self._watchdog.passed(min(now - before, 2 * _TICK_S))
            before = now

    async def _read(self, reader: asyncio.StreamReader, outbox: Outbox) -> None:
        outbox.put(self._config)
        try:
            while True:
                for message in await receive(reader):
                    self._take(message, outbox)
        except EOFError:
            return
        except WireError as error:
            _say(f"engine: {error}")

    def _take(self, message: Any, outbox: Outbox) -> None:
        if isinstance(message, m.Beat):
            self._numbers = message.numbers
            self._watchdog.heard(message.numbers)
        elif isinstance(message, m.Ready):
            self.card, self._outbox = message.card, outbox
            self._state, self._reason = "alive", ""
            self._since = time.monotonic()
            if self.loaded is not None and not self.loaded.done():
                self.loaded.set_result(message.card)
        elif isinstance(message, m.NotLoaded):
            self._state, self._reason = "failed", message.problem
            if self.loaded is not None and not self.loaded.done():
                self.loaded.set_exception(ServeError(message.problem, message.remedy, status=503))
                self.loaded.exception()  # seen, whether or not somebody waits for it
        elif (answer := self._answers.pop(message.id, None)) is not None:
            if answer.done():  # given up
                return
            if isinstance(message, m.Refused):
                answer.set_exception(refused(message))
            else:
                answer.set_result(message)
        elif (reply := self._replies.get(message.id)) is not None:
            reply.put(message)
            if reply.ended:
                del self._replies[message.id]

    def _fail_all(self, error: ServeError) -> None:
        replies, self._replies = list(self._replies.values()), {}
        answers, self._answers = list(self._answers.values()), {}
        for reply in replies:
            reply.fail(error)
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _say(text: str) -> None:
    print(f"qwenkit serve: {text}", file=sys.stderr, flush=True)
