"""Which of a model's output rows are tokens at all.

A checkpoint pads its embedding to a round height (151936 rows for 151851 tokens) and may leave ids without
text in between. Such rows were never trained: they can be neither read nor written, so requests that
name them are refused and their logits never reach a sampler.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from qwenkit.core.errors import ConfigError, RequestError
from qwenkit.engine.grammar import GrammarCompiler
from qwenkit.text import Tokenizer


class Vocabulary:
    """The ids that have text, out of `rows` output rows. Raises ConfigError if the model has too few."""

    def __init__(self, tokenizer: Tokenizer, rows: int) -> None:
        if len(tokenizer) > rows:
            raise ConfigError(
                f"The tokenizer has ids up to {len(tokenizer) - 1}, the model only {rows} rows.",
                "Tokenizer and weights are not of the same checkpoint.",
            )
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        self.holes = frozenset(tokenizer.ids_without_text(self.size))
        self.grammars = GrammarCompiler(tokenizer, self.size)
        self.hole_ids = torch.tensor(sorted(self.holes), dtype=torch.int32)

    def candidates(self, logits: Tensor) -> Tensor:
        """Model logits [b, rows] of any float dtype -> float32 [b, size], -inf at ids without text."""
        logits = logits[:, : self.size].float()
        if not self.holes:
            return logits
        return logits.index_fill(1, self.hole_ids.to(logits.device).long(), -torch.inf)

    def check(self, ids: Iterable[int], what: str) -> None:
        """Raise RequestError naming the first of `ids` that has no text."""
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool):
                raise RequestError(f"{what} contains {token!r}.", "Token ids are whole numbers.")
            if not 0 <= token < self.size or token in self.holes:
                raise RequestError(
                    f"{what} contains token id {token}, which has no text in this vocabulary.",
                    f"Ids run from 0 to {self.size - 1}"
                    + (f", without {len(self.holes)} unused ones." if self.holes else "."),
                )
