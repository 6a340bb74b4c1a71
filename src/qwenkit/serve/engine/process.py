"""The engine's process: loads a model, answers messages on one socket, and ends when that socket does.

Tokenizing runs on a small pool of threads, the engine's steps on the engine's own; the main thread only
passes messages. Knows nothing of HTTP. Started as `python -c "...main()" FD` by the supervisor.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from qwenkit.core import (
    ContextLengthError,
    QwenkitError,
    RequestError,
    Timings,
    TokenizerError,
    UnsupportedError,
    Usage,
)
from qwenkit.serve.engine import messages as m
from qwenkit.serve.engine.prompt_scores import prompt_scores
from qwenkit.serve.engine.prompt_vectors import prompt_vectors
from qwenkit.serve.engine.wire import Outbox, pack, receive
from qwenkit.text import infill
from qwenkit.text.hermes import OPEN
from qwenkit.text.tools import tool_format

if TYPE_CHECKING:
    from qwenkit.engine import Qwen
    from qwenkit.engine.request import Request

T = TypeVar("T")

TOKENIZER_THREADS = 2
SCORING_THREADS = 1  # each has a KV cache of its own
BEAT_S = 1.0
_BROKEN = 70  # exit code; EX_SOFTWARE of sysexits.h


def main() -> None:
    """Serve the socket whose descriptor is the only argument. Never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the HTTP process's to handle
    connection = socket.socket(fileno=int(sys.argv[1]))
    code = 1
    try:
        code = asyncio.run(_serve(connection))
    finally:
        sys.stderr.flush()
        os._exit(code)  # a step may be under way in the engine's thread: nobody wants its result


async def _serve(connection: socket.socket) -> int:
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        (config,) = await receive(reader)
        incoming = asyncio.create_task(receive(reader))
        loading = asyncio.get_running_loop().run_in_executor(None, _load, config)
        both: list[asyncio.Future[Any]] = [incoming, loading]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():  # before Ready nothing but the end can come
            return 0
        try:
            model = loading.result()
        except QwenkitError as error:
            writer.write(pack([m.NotLoaded(error.problem, error.remedy)]))
            await writer.drain()
            return 0
        await EngineServer(model, Outbox(writer)).run(incoming, reader)
    except EOFError:
        return 0
    return 0


def _load(config: m.EngineConfig) -> Qwen:
    gc.disable()  # all that comes now stays until the end
    try:
        from qwenkit.engine import Qwen

        return Qwen.load(config.model, **config.options)
    finally:
        gc.freeze()
        gc.enable()


class EngineServer:
    """Answers the messages of one connection with one model. Lives on one event loop."""

    def __init__(self, model: Qwen, outbox: Outbox) -> None:
        self._model = model
        self._outbox = outbox
        self._tokenizing = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="qwenkit-tokenizer")
        self._embedding = ThreadPoolExecutor(1, thread_name_prefix="qwenkit-embedding")
        self._scoring = ThreadPoolExecutor(SCORING_THREADS, thread_name_prefix="qwenkit-scoring")
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def run(self, incoming: asyncio.Task[list[Any]], reader: asyncio.StreamReader) -> None:
        """Tell that the model is there, then answer until the other end is gone."""
        self._outbox.put(m.Ready(self._card()))
        beats = asyncio.create_task(self._beat())
        try:
            while True:
                for message in await incoming:
                    self._take(message)
                incoming = asyncio.create_task(receive(reader))
        finally:
            beats.cancel()

    def numbers(self) -> m.EngineNumbers:
        stats = self._model.engine.stats()
        scheduler, blocks = stats.scheduler, stats.blocks
        return m.EngineNumbers(
            waiting=scheduler.waiting,
            running=scheduler.running,
            requests=len(self._tasks),
            preemptions=scheduler.preemptions,
            steps=stats.steps,
            tokens=stats.tokens,
            blocks_total=blocks.total,
            blocks_used=blocks.used,
            blocks_cached=blocks.cached,
            prefix_lookup_tokens=blocks.looked_up_tokens,
            prefix_hit_tokens=blocks.hit_tokens,
        )

    def _card(self) -> m.ModelCard:
        model = self._model
        return m.ModelCard(
            name=model.name,
            context_length=min(model.config.context_length, model.engine.cache.tokens),
            is_chat=model.is_chat,
            max_running=model.options.max_running,
            identity=f"{model.name} {model.quantization} {model.dtype} {model.options.kv_cache}",
            notice=model.notice,
            default_system=model.generation.default_system,
            tool_format=tool_format("auto", model.tokenizer).name,
            call_tokens=OPEN in model.tokenizer.special_tokens,
            hidden_size=model.config.hidden_size,
            infills=infill.known(model.tokenizer),
        )

    def _take(self, message: Any) -> None:
        if isinstance(message, m.Cancel):
            if (task := self._tasks.get(message.id)) is not None:
                task.cancel()
            return
        work = self._generate(message) if isinstance(message, m.Generate) else self._answer(message)
        task = asyncio.create_task(self._guarded(message.id, work))
        self._tasks[message.id] = task
        task.add_done_callback(lambda _: self._ended(message.id))

    def _ended(self, id_: int) -> None:
        self._tasks.pop(id_, None)
        if not self._tasks:
            self._outbox.put(m.Beat(self.numbers()))

    async def _guarded(self, id_: int, work: Any) -> None:
        """Whatever goes wrong with a request is told, and is the end of that request only."""
        try:
            await work
        except ContextLengthError as error:
            self._outbox.put(m.Refused(id_, "context_length", error.problem, error.remedy))
        except QwenkitError as error:
            self._check()
            self._outbox.put(m.Refused(id_, _kind(error), error.problem, error.remedy))
        except Exception as error:  # noqa: BLE001  one request's trouble must not end the others
            # The text of an exception may quote a prompt; its kind and place do not.
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
            print(f"qwenkit engine: {type(error).__name__} at {where}", file=sys.stderr, flush=True)
            self._check()
            self._outbox.put(m.Refused(id_, "engine", f"The engine failed with {type(error).__name__}."))

    async def _generate(self, ask: m.Generate) -> None:
        loop, model = asyncio.get_running_loop(), self._model
        request = await loop.run_in_executor(self._tokenizing, self._prepare, ask)
        ids = request.prompt_ids
        text = ask.prompt if isinstance(ask.prompt, str) else ""
        if isinstance(ask.prompt, tuple) and isinstance(ask.prompt[0], int):
            text = await loop.run_in_executor(self._tokenizing, model.tokenizer.decode, ids)
        scores = None
        if ask.prompt_logprobs is not None:
            scores = await self._scores(ids, ask.prompt_logprobs)
        if not ask.generate:
            self._outbox.put(m.Accepted(ask.id, len(ids), text, scores))
            self._outbox.put(m.Done(ask.id, Usage(len(ids), 0), Timings()))
            return
        stream = model.engine.submit(request)
        self._outbox.put(m.Accepted(ask.id, len(ids), text, scores))
        try:
            async for delta in stream:
                end = delta.completion
                self._outbox.put(m.Piece(ask.id, replace(delta, completion=None) if end else delta))
                if end is not None:
                    self._outbox.put(m.Done(ask.id, end.usage, end.timings))
                await self._outbox.drained()
        finally:
            stream.close()  # when cancelled, now, and not when the iterator is collected

    async def _scores(self, ids: Sequence[int], top: int) -> tuple[m.PromptToken, ...]:
        return await _until_given_up(self._scoring, partial(prompt_scores, self._model, ids, top))

    def _prepare(self, ask: m.Generate) -> Request:
        return self._model.prepare(ask.prompt, ask.params)

    async def _embed(self, ask: m.Embed) -> None:
        """One after the other, for each takes memory of its own; between two passes requests get a step."""
        self._outbox.put(await _until_given_up(self._embedding, partial(prompt_vectors, self._model, ask)))

    async def _answer(self, message: Any) -> None:
        if isinstance(message, m.Embed):
            await self._embed(message)
            return
        loop, tokenizer = asyncio.get_running_loop(), self._model.tokenizer
        if isinstance(message, m.Detokenize):
            self._model.engine.vocabulary.check(message.token_ids, "tokens")
            text = await loop.run_in_executor(self._tokenizing, tokenizer.decode, message.token_ids)
            self._outbox.put(m.Text(message.id, text))
            return
        ids = await loop.run_in_executor(self._tokenizing, self._tokenize, message)
        self._outbox.put(m.Tokens(message.id, tuple(ids)))

    def _tokenize(self, message: m.Tokenize) -> list[int]:
        return self._model.prompt_ids(message.prompt, parse_special=message.parse_special)

    async def _beat(self) -> None:
        while True:
            self._outbox.put(m.Beat(self.numbers()))
            await asyncio.sleep(BEAT_S)
            self._check()

    def _check(self) -> None:
        """End the process if the engine has ended by a mistake in itself; nobody else would close it."""
        if self._model.engine.closed:
            print("qwenkit engine: it has ended by a mistake", file=sys.stderr, flush=True)
            os._exit(_BROKEN)


async def _until_given_up(pool: ThreadPoolExecutor, work: Callable[[threading.Event], T]) -> T:
    """Its result. A thread cannot be cancelled: the event tells `work` that nobody waits any more."""
    given_up = threading.Event()
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, work, given_up)
    finally:
        given_up.set()


def _kind(error: QwenkitError) -> m.RefusalKind:
    from qwenkit.engine.scheduler import QueueFullError

    if isinstance(error, QueueFullError):
        return "queue_full"
    if isinstance(error, UnsupportedError):
        return "unsupported"
    return "request" if isinstance(error, (RequestError, TokenizerError)) else "engine"
