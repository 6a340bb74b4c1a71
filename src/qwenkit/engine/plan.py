"""Which rows run together, so that memory stays bounded however many prompts are given at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwenkit.engine.request import Request
from qwenkit.engine.sequence import TokenSequence


@dataclass(frozen=True)
class Share:
    """Some or all continuations of one request, in one batch. The prompt is read once for all of them."""

    request: Request
    sequences: tuple[TokenSequence, ...]


def plan_batches(requests: Sequence[Request], max_batch_tokens: int) -> list[list[Share]]:
    """Batches of at most rows x (longest prompt + longest reply) <= max_batch_tokens slots, or a single row.

    Prompts of like length come together, longest first, so little is padding; a request whose many
    continuations do not fit is spread over several batches.
    """
    batches: list[list[Share]] = []
    open_batch: list[Share] = []
    rows = width = reply = 0
    for request in sorted(requests, key=lambda r: -len(r.prompt_ids)):
        waiting = request.sequences
        while waiting:
            slots = max(width, len(request.prompt_ids)) + max(reply, request.max_tokens)
            fitting = max_batch_tokens // slots - rows
            if fitting < 1 and rows:
                batches.append(open_batch)
                open_batch, rows, width, reply = [], 0, 0, 0
                continue
            taken = waiting[: max(1, fitting)]
            waiting = waiting[len(taken) :]
            open_batch.append(Share(request, tuple(taken)))
            rows += len(taken)
            width, reply = max(width, len(request.prompt_ids)), max(reply, request.max_tokens)
    if open_batch:
        batches.append(open_batch)
    return batches
