"""What chat and text completions have in common: the envelope, usage, the ends of streams."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from qwenkit.core import Usage
from qwenkit.serve.errors import ServeError
from qwenkit.serve.openai.schemas import StreamUsage
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

    def __init__(self, usage: StreamUsage) -> None:
        self._more: dict[str, Any] = {} if usage == "none" else {"usage": None}
        self._counts = usage == "chunks"
        self._prompt_tokens = self._completion_tokens = 0

    def count(self, prompt_tokens: int, completion_tokens: int) -> None:
        """So many more; the chunks that follow say so where it was asked for."""
        self._prompt_tokens += prompt_tokens
        self._completion_tokens += completion_tokens
        if self._counts:
            total = self._prompt_tokens + self._completion_tokens
            counts = {"prompt_tokens": self._prompt_tokens, "completion_tokens": self._completion_tokens}
            self._more = {"usage": {**counts, "total_tokens": total}}

    def usage(self, usage: Usage) -> dict[str, Any]:
        return usage_json(usage)

    def failure(self, error: ServeError) -> dict[str, Any]:
        return error.body()
