"""What is known of an HTTP request at its end: for log, metrics and traces, filled in along the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.types import Scope

from qwenkit.core import FinishReason, SamplingParams

KEY = "qwenkit.record"


@dataclass
class Record:
    """`code` is that of the error the request met, if any; `left`: the client did not wait for the end.
    params, stream: what was asked of the engine. first_token_s: from asking it to the first text; queue_s,
    prefill_s: the longest of its prompts."""

    id: str
    status: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    code: str | None = None
    left: bool = False
    params: SamplingParams | None = None
    stream: bool = False
    cached_tokens: int | None = None
    finish_reasons: list[FinishReason] = field(default_factory=list)
    first_token_s: float | None = None
    queue_s: float | None = None
    prefill_s: float | None = None


def record(scope: Scope) -> Record:
    """The record of the request with this scope."""
    found: Record = scope[KEY]
    return found
