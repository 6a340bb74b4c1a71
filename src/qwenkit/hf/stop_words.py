"""Stopping at token sequences: the `stop_words_ids` of the original (reference: chat section 3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from qwenkit.core import RequestError


class StopWordsCriteria(StoppingCriteria):
    """Ends a row once it has generated one of the sequences in full.

    The original forced `<|endoftext|>` after a stop and also looked at the prompt, so a prompt ending in a
    stop sequence ended at once; here only generated tokens count and nothing is appended.
    """

    def __init__(self, stop_words_ids: Any, prompt_length: int) -> None:
        """Raises RequestError (a ValueError) unless given non-empty lists of non-negative token ids."""
        self.sequences = check_stop_words(stop_words_ids)
        self.prompt_length = prompt_length
        self._checked = 0  # generated tokens already looked at; a pass may add several

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        generated = input_ids[:, self.prompt_length :]
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for sequence in self.sequences:
            window = generated[:, max(0, self._checked - len(sequence) + 1) :]
            if window.shape[1] >= len(sequence):
                stop = torch.tensor(sequence, device=input_ids.device)
                done |= (window.unfold(1, len(sequence), 1) == stop).all(-1).any(-1)
        self._checked = generated.shape[1]
        return done


def check_stop_words(stop_words_ids: Any) -> list[tuple[int, ...]]:
    """The sequences as tuples. Raises RequestError for an empty list, an empty sequence or a bad id."""
    if isinstance(stop_words_ids, (str, bytes)) or not isinstance(stop_words_ids, Iterable):
        raise RequestError(f"stop_words_ids is {stop_words_ids!r}.", "Give a list of lists of token ids.")
    sequences = []
    for item in stop_words_ids:
        ids = tuple(item) if isinstance(item, Iterable) and not isinstance(item, (str, bytes)) else ()
        if not ids or any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
            raise RequestError(
                f"stop_words_ids contains {item!r}.", "Each entry is a non-empty list of token ids >= 0."
            )
        sequences.append(ids)
    if not sequences:
        raise RequestError("stop_words_ids is empty.", "Leave it out, or give at least one sequence.")
    return sequences
