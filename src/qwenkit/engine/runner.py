"""Carrying out a scheduler's step: the model over a ragged batch and its paged cache.

Knows tokens, blocks and logits; nothing of text, sampling rules or requests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwenkit.engine.native_blocks import native_stack
from qwenkit.engine.paged_cache import PagedCache, RaggedBatch
from qwenkit.engine.scheduler import Step
from qwenkit.model import CausalLM


class Runner:
    """A model on its device and the cache it writes; one step at a time."""

    def __init__(self, model: CausalLM, cache: PagedCache) -> None:
        self.model = model
        self.cache = cache
        self.device = model.transformer.wte.weight.device
        self.stack = native_stack(model, cache)

    @torch.inference_mode()
    def compute(self, step: Step) -> Tensor:
        """Copies first, then all rows in one pass. Logits [n, rows of the vocabulary] in the model's dtype.

        n counts, row after row, the last 1 + drafts tokens of each row that somebody samples from.
        """
        sampled: list[int] = []
        end = 0
        for row in step.rows:
            end += row.count
            if row.samples:
                sampled.extend(range(end - row.drafts - 1, end))
        at = torch.tensor(sampled, dtype=torch.int64, device=self.device)
        logits: Tensor = self.model(*self._pass(step), at=at)[0]
        return logits

    @torch.inference_mode()
    def hidden(self, step: Step) -> Tensor:
        """As `compute`, up to the output projection: [1, tokens of the step, hidden size]."""
        states: Tensor = self.model.transformer(*self._pass(step))
        return states

    def _pass(self, step: Step) -> tuple[Tensor, RaggedBatch]:
        self.cache.copy(step.copies)
        tokens = torch.tensor([[token for row in step.rows for token in row.token_ids]], device=self.device)
        return tokens, RaggedBatch.of(step, self.cache, self.device, self.stack)
