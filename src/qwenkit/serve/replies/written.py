"""Choices as a whole, and which of several to keep: those the model itself found likeliest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwenkit.core import FinishReason, TokenLogprob


@dataclass
class Written:
    """One choice, collected."""

    text: str = ""
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    end_logprob: TokenLogprob | None = None

    @property
    def mean_logprob(self) -> float:
        """Of its tokens; minus infinity without any."""
        values = [token.logprob for token in self.logprobs or ()]
        return sum(values) / len(values) if values else float("-inf")


def best(written: Mapping[tuple[int, int], Written], n: int) -> dict[tuple[int, int], Written]:
    """Of each prompt the `n` choices with the highest mean log probability, best first and so numbered.

    Keys are number of prompt and choice.
    """
    kept: dict[tuple[int, int], Written] = {}
    for prompt in sorted({prompt for prompt, _ in written}):
        own = [choice for (of, _), choice in sorted(written.items()) if of == prompt]
        ranked = sorted(own, key=lambda choice: choice.mean_logprob, reverse=True)
        kept.update({(prompt, index): choice for index, choice in enumerate(ranked[:n])})
    return kept
