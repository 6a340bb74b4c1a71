"""From requests to streams of deltas, and from streams to completions.

Layers: `stream_batch` runs one batch step by step, `stream` any number of requests within the runner's
memory bound, `collect` waits for the results. Closing a stream stops computing at once and frees its cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qwenkit.core.completion import Completion, Delta
from qwenkit.engine.plan import Share, plan_batches
from qwenkit.engine.request import Request
from qwenkit.engine.runner import Runner, RunningBatch
from qwenkit.engine.threads import one_torch_thread


def collect(runner: Runner, requests: Sequence[Request]) -> list[Completion]:
    """The completion of each request, in order."""
    for _ in stream(runner, requests):
        pass
    return [request.completion() for request in requests]


def stream(runner: Runner, requests: Sequence[Request]) -> Iterator[tuple[Request, Delta]]:
    """Deltas of all requests as they come; the last of each request has its completion.

    Raises QwenkitError if the model produces NaN or infinite logits.
    """
    running = {id(request): len(request.sequences) for request in requests}
    for shares in plan_batches(requests, runner.max_batch_tokens):
        for request, delta in stream_batch(runner, shares):
            if delta.finish_reason is not None:
                running[id(request)] -= 1
                if not running[id(request)]:
                    delta = replace(delta, completion=request.completion())
            yield request, delta


def stream_batch(runner: Runner, shares: Sequence[Share]) -> Iterator[tuple[Request, Delta]]:
    """Deltas of rows that run together, without completions; keeps the times of their requests."""
    owners = [share.request for share in shares for _ in share.sequences]
    batch = RunningBatch(runner, shares)
    begun = time.monotonic()
    for request in owners:
        request.started = begun if request.started is None else request.started
    logits = batch.prefill()
    owner = dict(zip(map(id, batch.rows), owners, strict=True))
    while True:
        with one_torch_thread(runner.native):
            deltas = _advance(batch, logits)
        now = time.monotonic()
        for request in owners:
            request.first_token = now if request.first_token is None else request.first_token
            request.ended = now
        spoken = [(owner[id(row)], delta) for row, delta in zip(batch.rows, deltas, strict=True)]
        batch.drop_finished()  # before yielding, so that a slow reader does not hold their memory
        owners = [owner[id(row)] for row in batch.rows]
        yield from ((request, delta) for request, delta in spoken if delta is not None)
        if not batch.rows:
            return
        logits = batch.step()


@torch.inference_mode()
def _advance(batch: RunningBatch, logits: Tensor) -> list[Delta | None]:
    """One more token for each row."""
    return [row.advance(scores) for row, scores in zip(batch.rows, logits, strict=True)]
