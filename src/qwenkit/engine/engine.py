"""All requests at once: one thread runs the scheduler's steps and hands out what they yield.

Submitting, cancelling and reading are safe from any thread and from event loops. The thread lives while
there is work and no longer, so an idle engine holds nothing but its memory.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from qwenkit.core.completion import Delta
from qwenkit.core.errors import QwenkitError
from qwenkit.engine.blocks import BlockManager, BlockStats
from qwenkit.engine.paged_cache import PagedCache
from qwenkit.engine.request import Request
from qwenkit.engine.runner import Runner
from qwenkit.engine.sampler import Rows
from qwenkit.engine.scheduler import QueueFullError, Row, Scheduler, SchedulerStats, Step
from qwenkit.engine.sequence import TokenSequence, advance
from qwenkit.engine.speculate import Speculator
from qwenkit.engine.stream import Stream
from qwenkit.engine.threads import one_torch_thread, uses_native_pool
from qwenkit.engine.vocabulary import Vocabulary
from qwenkit.model import CausalLM

_MOST_FORCED = 16
"""Tokens a grammar leaves no choice about that one step checks; as many as guesses (Speculator)."""


class EngineStats(NamedTuple):
    """What waits and runs, what the cache holds, and steps and tokens computed since the start."""

    scheduler: SchedulerStats
    blocks: BlockStats
    steps: int
    tokens: int


@dataclass(eq=False)
class _Job:
    """A submitted request; `left` of its sequences have not ended."""

    request: Request
    stream: Stream
    left: int
    sequences: dict[int, TokenSequence]


class Engine:
    """A model, its cache, and the requests that share them.

    max_running: sequences computed together. step_tokens: most tokens of one step, prompts included; it
    bounds how long a running reply waits for somebody's prompt. max_waiting: requests in the queue.
    speculator: proposes several tokens a step; it changes speed and nothing else.
    """

    def __init__(
        self,
        model: CausalLM,
        vocabulary: Vocabulary,
        cache: PagedCache,
        *,
        max_running: int = 32,
        step_tokens: int = 512,
        max_waiting: int = 1024,
        speculator: Speculator | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.cache = cache
        self.scheduler = Scheduler(
            BlockManager(cache.shape.blocks, cache.shape.block_size),
            max_step_tokens=max(step_tokens, max_running),
            max_running=max_running,
            max_waiting=max_waiting,
        )
        self._runner = Runner(model, cache)
        self._speculator = speculator
        self._forced: set[int] = set()  # sequences whose drafts of this step are no guesses
        self._ended: list[int] = []  # sequences the speculator has not been told of
        self._native = uses_native_pool(model)
        self._lock = threading.Lock()  # of the scheduler and the jobs; never held while computing
        self._advanced = threading.Condition(self._lock)
        self._computing = threading.Lock()
        self._jobs: dict[int, _Job] = {}  # by sequence
        self._thread: threading.Thread | None = None
        self._working = False  # whether the thread will look for work again
        self._closed = False
        self._steps = self._tokens = 0
        _close_at_exit(self)

    @property
    def speculates(self) -> bool:
        return self._speculator is not None

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: it was closed, or failed in a way that ended all of them."""
        return self._closed

    def submit(self, request: Request, *, priority: int = 0, wait: bool = False) -> Stream:
        """Queue a request; its stream yields deltas, the last with the completion.

        priority: the larger, the sooner (see Scheduler). wait: block while the queue is full. Raises
        RequestError for what can never run, QueueFullError, QwenkitError after `close`.
        """
        stream = Stream(lambda: self._cancel(job))
        job = _Job(request, stream, len(request.sequences), {})
        with self._lock:
            for group in _groups(request.sequences, self.scheduler.max_running):
                try:
                    ids = self._add(request, len(group), priority, wait)
                except BaseException:
                    self._forget(job)
                    raise
                job.sequences.update(zip(ids, group, strict=True))
                self._jobs.update(dict.fromkeys(ids, job))
                if not self._working:
                    self._working = True
                    self._thread = threading.Thread(target=self._run, name="qwenkit-engine", daemon=True)
                    self._thread.start()
        return stream

    def exclusively(self, compute: Callable[[], Tensor]) -> Tensor:
        """Run `compute` between two steps, on the caller's thread; it counts as a step."""
        with self._computing, torch.inference_mode(), one_torch_thread(self._native):
            result = compute()
        with self._lock:
            self._steps += 1
        return result

    def stats(self) -> EngineStats:
        with self._lock:
            blocks = self.scheduler.blocks.stats()
            return EngineStats(self.scheduler.stats(), blocks, self._steps, self._tokens)

    def close(self) -> None:
        """Cancel everything and wait for the step in flight. Submitting afterwards is an error."""
        thread = self._thread
        self._end_all(QwenkitError("The engine was closed.", "Load the model again."))
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # Bookkeeping

    def _add(self, request: Request, n: int, priority: int, wait: bool) -> list[int]:
        while True:
            if self._closed:
                raise QwenkitError("The engine was closed.", "Load the model again.")
            try:
                return self.scheduler.add(
                    request.prompt_ids,
                    request.max_tokens,
                    n=n,
                    ntk_alpha=request.ntk_alpha,
                    priority=priority,
                )
            except QueueFullError:
                if not wait:
                    raise
                self._advanced.wait()

    def _forget(self, job: _Job) -> None:
        for id_ in job.sequences:
            self.scheduler.cancel(id_)
            self._drop(id_)

    def _drop(self, id_: int) -> None:
        if self._jobs.pop(id_, None) is not None:
            self._ended.append(id_)

    def _cancel(self, job: _Job) -> None:
        with self._lock:
            self._forget(job)
            self._advanced.notify_all()

    def _end_all(self, error: BaseException) -> None:
        with self._lock:
            self._closed = True
            jobs = set(self._jobs.values())
            for job in jobs:
                self._forget(job)
            self._advanced.notify_all()
        for job in jobs:
            job.stream.end(error)

    # The engine's thread

    def _run(self) -> None:
        try:
            with torch.inference_mode(), one_torch_thread(self._native):
                while (step := self._schedule()) is not None:
                    try:
                        logits = self._compute(step)
                    except BaseException as error:  # noqa: BLE001  whoever waits must hear of it
                        self._give_up(step, error)
                    else:
                        self._complete(step, logits)
        except BaseException as error:
            self._end_all(error)  # a mistake in the engine itself: nobody must wait for ever
            raise

    def _schedule(self) -> Step | None:
        """The next step, or None when nothing is left and the thread may end."""
        drafts = self._drafts()
        with self._lock:
            step = self.scheduler.schedule(drafts)
            self._advanced.notify_all()
            if not step.rows:
                self._working = False
                return None
            now = time.monotonic()
            for row in step.rows:
                job = self._jobs.get(row.sequence_id)
                if job is not None and job.request.started is None:
                    job.request.started = now
                    job.request.cached_tokens = row.start
            return step

    def _drafts(self) -> dict[int, tuple[int, ...]]:
        """Guesses for the next step. Texts grow in this thread only, so the lock need not be held to read."""
        with self._lock:
            ended, self._ended = self._ended, []
            if self._speculator is None:
                return {}
            texts, reading = self.scheduler.decoding(), self.scheduler.reading()
            held = {id_: self._jobs[id_].sequences[id_].matcher for id_ in texts if id_ in self._jobs}
        for id_ in ended:
            self._speculator.forget(id_)
        drafts, self._forced = self._speculator.drafts(texts, len(texts) + reading), set()
        for id_, matcher in held.items():
            if matcher is None:
                continue
            if forced := matcher.forced()[:_MOST_FORCED]:  # no choice is left, so these are sure to be drawn
                self._forced.add(id_)
                drafts[id_] = tuple(forced)
            elif id_ in drafts:
                drafts[id_] = drafts[id_][: matcher.valid(drafts[id_])]
        return drafts

    def _compute(self, step: Step) -> Tensor:
        with self._computing:
            return self._runner.compute(step)

    def _complete(self, step: Step, logits: Tensor) -> None:
        drawn, deltas = self._draw(step, logits)
        finished = [id_ for id_ in drawn if self._finished(id_)]
        with self._lock:
            self._steps += 1
            self._tokens += step.tokens
            self.scheduler.complete(step, drawn, finished)
            for id_ in finished:
                self._drop(id_)
            self._advanced.notify_all()
        now = time.monotonic()
        for job, delta in deltas:
            _deliver(job, delta, now)

    def _draw(self, step: Step, logits: Tensor) -> tuple[dict[int, list[int]], list[tuple[_Job, Delta]]]:
        """New tokens of every sequence that samples in this step, and what their readers may see of them."""
        turns: list[tuple[int, _Job, Rows]] = []
        first = 0
        for row in step.rows:
            if row.samples:
                here = Rows(first, row.token_ids[row.count - row.drafts :])
                first += here.count
                for id_ in row.samples:
                    if (job := self._jobs.get(id_)) is not None:  # else cancelled
                        turns.append((id_, job, here))
        drawn: dict[int, list[int]] = {}
        deltas: list[tuple[_Job, Delta]] = []
        advanced = advance([(job.sequences[id_], here) for id_, job, here in turns], logits, self.vocabulary)
        now = time.monotonic()
        for (id_, job, here), done in zip(turns, advanced, strict=True):
            if id_ not in self._jobs:  # another sequence of its request has just failed
                continue
            if isinstance(done, QwenkitError):
                self._cancel(job)
                job.stream.end(done)
                continue
            drawn[id_] = done.tokens
            if here.drafts and self._speculator is not None and id_ not in self._forced:
                self._speculator.record(id_, len(here.drafts), len(done.tokens) - 1)
            deltas.extend((job, delta) for delta in done.deltas)
            job.request.first_token = job.request.first_token or now
        return drawn, deltas

    def _finished(self, id_: int) -> bool:
        job = self._jobs.get(id_)
        return job is None or job.sequences[id_].finished

    def _give_up(self, step: Step, error: BaseException) -> None:
        """The step failed: its requests end with the error, all others go on."""
        with self._lock:
            self._steps += 1
            jobs = {self._jobs[id_] for id_ in _members(step.rows) if id_ in self._jobs}
            self.scheduler.abandon(step)
            for job in jobs:
                self._forget(job)
        for job in jobs:
            job.stream.end(error)


def _groups(sequences: list[TokenSequence], most: int) -> Iterable[list[TokenSequence]]:
    return (sequences[i : i + most] for i in range(0, len(sequences), most))


def _members(rows: Iterable[Row]) -> set[int]:
    return {id_ for row in rows for id_ in (row.sequence_id, *row.samples)}


def _deliver(job: _Job, delta: Delta, now: float) -> None:
    job.request.ended = now
    if delta.finish_reason is not None:
        job.left -= 1
        if not job.left:
            delta = replace(delta, completion=job.request.completion())
    job.stream.put(delta)


def _close_at_exit(engine: Engine) -> None:
    """A thread in the middle of a step must not outlive the interpreter; nor must this keep the engine."""
    held = weakref.ref(engine)

    def close() -> None:
        if (alive := held()) is not None:
            alive.close()

    atexit.register(close)
    weakref.finalize(engine, atexit.unregister, close)
