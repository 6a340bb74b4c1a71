"""What chat and text completions have in common: the envelope, usage, the ends of streams."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from qwenkit.core import Usage
from qwenkit.serve.errors import ServeError
from qwenkit.serve.replies.format import Chunks


@dataclass(frozen=True)
class Envelope:
    """What every reply and every chunk of a request carries."""

    model: str
    created: int
    fingerprint: str
    kind: str
    prefix: str
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{self.prefix}-{uuid.uuid4().hex}")

    def around(self, kind: str, choices: Chunks, **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            **more,
        }


def usage_json(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


class CompletionStream:
    """What streams of both completion endpoints have in common."""

    named = False

    def usage(self, usage: Usage) -> dict[str, Any]:
        return usage_json(usage)

    def failure(self, error: ServeError) -> dict[str, Any]:
        return error.body()
