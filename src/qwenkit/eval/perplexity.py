"""Perplexity of a model on windows of text, also by position."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwenkit.core import RequestError
from qwenkit.engine import Qwen
from qwenkit.eval.windows import Window


@dataclass(frozen=True, eq=False)
class Perplexity:
    """losses: float64 [tokens], -log of each predicted token's probability; positions: int64, its place."""

    losses: NDArray[np.float64]
    positions: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """Predicted ones."""
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Nats a token."""
        return float(self.losses.mean())

    @property
    def value(self) -> float:
        """exp of the loss."""
        return math.exp(self.loss)

    @property
    def error(self) -> float:
        """Standard error of the loss: how far another text of the same kind may lie."""
        return _standard_error(self.losses)

    def change_from(self, other: Perplexity) -> tuple[float, float]:
        """This perplexity over the other's, less one, and the standard error of that, paired token by token.

        Raises RequestError unless both are of the same tokens.
        """
        if self.tokens != other.tokens:
            raise RequestError(
                f"Perplexities of {self.tokens} and of {other.tokens} tokens.",
                "Measure both on the same windows.",
            )
        difference = self.losses - other.losses
        return math.expm1(float(difference.mean())), _standard_error(difference)

    def buckets(self, size: int) -> list[tuple[int, int, float]]:
        """(first position, tokens, loss) of each stretch of `size` positions."""
        place = self.positions // size
        return [
            (int(at) * size, int((place == at).sum()), float(self.losses[place == at].mean()))
            for at in np.unique(place)
        ]


def perplexity(
    model: Qwen, windows: Sequence[Window], *, progress: Callable[[int], object] | None = None
) -> Perplexity:
    """Of all tokens but the first of each window, given those before them in it.

    progress: told how many tokens each window had. Raises RequestError for a window longer than the model's
    context, and if there is none.
    """
    if not windows:
        raise RequestError("No text to measure perplexity on.", "Give at least one window.")
    losses, positions = [], []
    for window in windows:
        losses.append(-np.array(model.score(window.ids)))
        positions.append(np.arange(1, len(window.ids)))
        if progress is not None:
            progress(len(window.ids))
    return Perplexity(np.concatenate(losses), np.concatenate(positions))


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf
