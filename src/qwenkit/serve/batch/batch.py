"""A batch from a file to a file: many requests at once, each through the same application as the server's.

The application is called in this process, without a socket, or is a server somewhere else. What is in memory
is what is under way, and 16 bytes and their place in a set for each custom_id.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from qwenkit.core import QwenkitError
from qwenkit.serve.batch.input import BadLine, BatchLine, count_lines, read_lines
from qwenkit.serve.batch.output import BatchOutput

_ENDS = ("engine_died", "engine_hung")  # of an engine over the requests it was at work on
_DEATHS = 3  # of an engine over one request, which is then answered with the last
_PATIENCE_S = 600.0  # without any answer, while the server says to come again
_AWAY_S = 60.0  # that a server which has answered may be out of reach
_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 60.0
_AGAIN = "A second start goes on from here."


class BatchWatch(Protocol):
    """Is told how a run goes."""

    def begin(self, lines: int) -> None:
        """So many lines are there, about."""

    def passed(self) -> None:
        """A line was answered by an earlier run."""

    def answered(self, failed: bool, prompt_tokens: int, completion_tokens: int) -> None: ...

    def note(self, text: str) -> None:
        """Something a person should know."""


@dataclass
class BatchReport:
    """failed: lines of the whole output without a good answer. interrupted: some were not asked."""

    answered: int = 0
    passed: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    interrupted: bool = False


class Batch:
    """One run. in_flight: requests under way at once. longest: bytes of a line."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        output: BatchOutput,
        watch: BatchWatch,
        *,
        in_flight: int,
        longest: int,
    ) -> None:
        self.report = BatchReport()
        self._client = client
        self._output = output
        self._watch = watch
        self._in_flight = in_flight
        self._longest = longest
        self._ending = False
        self._workers: list[asyncio.Task[None]] = []
        self._suspects = asyncio.Lock()
        self._answer_at = time.monotonic()

    async def run(self, path: Path) -> BatchReport:
        """Ask all that has no answer yet. Raises QwenkitError when going on makes no sense; then, and when
        interrupted, the output has what was answered, and another run goes on from there."""
        began = time.monotonic()
        self._watch.begin(count_lines(path))
        lines = read_lines(path, self._longest)
        self._workers = [asyncio.create_task(self._work(lines)) for _ in range(self._in_flight)]
        with self._signals():
            try:
                await asyncio.gather(*self._workers)
            except asyncio.CancelledError:
                if not self._ending:
                    raise
            finally:
                for worker in self._workers:
                    worker.cancel()
                await asyncio.gather(*self._workers, return_exceptions=True)
        self.report.failed = self._output.failed
        self.report.interrupted = self._ending
        self.report.seconds = time.monotonic() - began
        return self.report

    async def _work(self, lines: Iterator[BatchLine | BadLine]) -> None:
        while not self._ending and (line := next(lines, None)) is not None:
            await asyncio.sleep(0)  # or thousands of lines answered before would hold up everybody
            if self._output.has(line):
                self.report.passed += 1
                self._watch.passed()
            elif isinstance(line, BadLine):
                self._output.report(line)
                self._watch.answered(True, 0, 0)
            else:
                await self._ask(line)

    async def _ask(self, line: BatchLine) -> None:
        try:
            answer = await self._answer(line)
        except httpx.ReadTimeout:
            self._output.unanswered(line, "request_timeout", "No answer came in time.")
            self._count(True, None)
            return
        if answer is None:
            return
        body = _body(answer)
        if answer.status_code in (401, 403):  # so would all others be
            raise QwenkitError(f"The server refuses: {_message(body)}", "Give its key in $QWENKIT_API_KEY.")
        self._answer_at = time.monotonic()
        self._output.answer(line, answer.status_code, answer.headers.get("x-request-id"), body)
        self._count(answer.status_code != 200, body)

    async def _answer(self, line: BatchLine) -> httpx.Response | None:
        """Ask until there is an answer that is more than "come again"; None when interrupted meanwhile."""
        deaths = 0
        async with AsyncExitStack() as kept:
            while True:
                answer = await self._post(line)
                pause = _PAUSE_S
                if answer is not None:
                    if answer.status_code not in (429, 503):
                        return answer
                    body, pause = _body(answer), _pause(answer)
                    if _code(body) in _ENDS:
                        # Over this request, or over another: all it happened to are tried again one after the
                        # other, so that the guilty one takes no others with it.
                        if not deaths:
                            await kept.enter_async_context(self._suspects)
                        deaths += 1
                        if deaths == _DEATHS:
                            return answer
                        self._answer_at = time.monotonic()  # finding out took its time
                    if time.monotonic() - self._answer_at > _PATIENCE_S:
                        raise QwenkitError(f"No answer for {_PATIENCE_S:.0f} s: {_message(body)}", _AGAIN)
                if self._ending:
                    return None
                await asyncio.sleep(pause)

    async def _post(self, line: BatchLine) -> httpx.Response | None:
        """The answer; None if the server cannot be reached just now. Raises QwenkitError if it seems gone."""
        headers = {"Content-Type": "application/json"}
        try:
            return await self._client.post(line.url, content=json.dumps(line.body).encode(), headers=headers)
        except httpx.ReadTimeout:
            raise
        except httpx.TransportError as error:
            if self.report.answered and time.monotonic() - self._answer_at < _AWAY_S:
                return None
            what = f"{type(error).__name__} {error}".strip()
            raise QwenkitError(f"{self._client.base_url} does not answer: {what}.", _AGAIN) from error

    def _count(self, failed: bool, body: Any) -> None:
        usage = body.get("usage") if isinstance(body, dict) else None
        prompt, completion = (
            sum(_count(usage, name) for name in names) if isinstance(usage, dict) else 0
            for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
        )
        self.report.answered += 1
        self.report.prompt_tokens += prompt
        self.report.completion_tokens += completion
        self._watch.answered(failed, prompt, completion)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        caught = (signal.SIGINT, signal.SIGTERM)
        for one in caught:
            loop.add_signal_handler(one, self._interrupt)
        try:
            yield
        finally:
            for one in caught:
                loop.remove_signal_handler(one)

    def _interrupt(self) -> None:
        """No more lines are asked; a second time, those under way are given up."""
        if self._ending:
            for worker in self._workers:
                worker.cancel()
            return
        self._ending = True
        left = sum(not worker.done() for worker in self._workers)
        self._watch.note(f"Finishing {left} requests under way; interrupt again to give them up.")


def _body(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return answer.text


def _code(body: Any) -> Any:
    error = body.get("error") if isinstance(body, dict) else None
    return error.get("code") if isinstance(error, dict) else None


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return f"{error.get('message') if isinstance(error, dict) else body}"[:200]


def _count(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else 0


def _pause(answer: httpx.Response) -> float:
    """Seconds that a server asks to wait."""
    try:
        asked = float(answer.headers.get("retry-after", ""))
    except ValueError:
        asked = _PAUSE_S
    return min(_LONGEST_PAUSE_S, max(0.1, asked))
