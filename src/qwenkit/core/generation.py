"""What a checkpoint says about generating from it (its generation_config.json)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qwenkit.core.sampling import SamplingParams

DEFAULT_SYSTEM = "You are a helpful assistant."
"""System prompt of the original `model.chat` (reference: chat section 5)."""


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Defaults that travel with the weights.

    sampling: fills what a request leaves as None; every field of it that can be None is set.
    stop_token_ids: tokens that end a text of this model (end of text, end of turn).
    chat_format: "chatml" for models trained to chat, "raw" for base models that complete text.
    max_window_size: tokens of system prompt and history kept by `chat`; None keeps all.
    default_system: system prompt used when the caller gives none.
    """

    sampling: SamplingParams = field(
        default_factory=lambda: SamplingParams(
            temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, max_tokens=512
        )
    )
    stop_token_ids: tuple[int, ...] = ()
    chat_format: Literal["chatml", "raw"] = "chatml"
    max_window_size: int | None = None
    default_system: str = DEFAULT_SYSTEM
