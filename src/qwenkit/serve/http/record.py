"""What is known of an HTTP request at its end: for the log and the metrics, filled in along the way."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

KEY = "qwenkit.record"


@dataclass
class Record:
    """`code` is that of the error the request met, if any; `left`: the client did not wait for the end."""

    id: str
    status: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    code: str | None = None
    left: bool = False


def record(scope: Scope) -> Record:
    """The record of the request with this scope."""
    found: Record = scope[KEY]
    return found
