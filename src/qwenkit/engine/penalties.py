"""Which logits one text changes: logit bias, then repetition, presence and frequency penalties.

Knows the tokens of one text; touches only the logits it changes, so a penalty costs its tokens, not the
vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwenkit.core.sampling import SamplingParams
from qwenkit.kernels.reference_sampling import Edits

_LEAST = 2.0**-126  # the smallest normal float32
_LARGEST = np.float32(2.0**127)


class Penalties:
    """Logits after bias and penalties, for a text that began with `prompt_ids`.

    params.repetition_penalty must be set. Repetition (Keskar et al. 2019, arXiv:1909.05858, in the
    sign-aware form of transformers) divides positive and multiplies negative logits of every token of prompt
    or reply, once however often it came. Presence and frequency count the reply alone (OpenAI API).
    """

    def __init__(self, params: SamplingParams, prompt_ids: tuple[int, ...]) -> None:
        if params.repetition_penalty is None:
            raise TypeError("Penalties need resolved parameters: repetition_penalty is None.")
        self._repetition = np.float32(max(params.repetition_penalty, _LEAST))  # 0 would divide by it
        self._presence = np.float32(params.presence_penalty)
        self._frequency = np.float32(params.frequency_penalty)
        self._counts_reply = bool(params.presence_penalty or params.frequency_penalty)
        counted = prompt_ids if self._repetition != 1 else ()
        self._slot: dict[int, int] = {}
        room = max(16, len(params.logit_bias) + 2 * len(counted))
        self._ids = np.empty(room, np.int32)
        self._counts = np.zeros((3, room), np.float32)  # bias, times in prompt and reply, times in the reply
        for token, bias in params.logit_bias.items():
            slot = self._slot_of(token)
            self._counts[0, slot] = bias
        for token in counted:
            slot = self._slot_of(token)
            self._counts[1, slot] += 1

    def add(self, token: int) -> None:
        """The reply has grown by `token`."""
        if self._repetition != 1 or self._counts_reply:
            slot = self._slot_of(token)
            self._counts[1:, slot] += 1

    def undo(self, token: int) -> None:
        """Takes back the last `add` of `token`."""
        if self._repetition != 1 or self._counts_reply:
            self._counts[1:, self._slot[token]] -= 1

    def edits(self, row: Tensor) -> Edits | None:
        """The logits to use instead of those of `row` [vocab], of any float dtype; None: all its own."""
        size = len(self._slot)
        if not size:
            return None
        ids, (bias, times, made) = self._ids[:size].copy(), self._counts[:, :size]
        held: NDArray[np.float32] = row[torch.from_numpy(ids).to(row.device)].float().cpu().numpy()
        held = held + bias
        if self._repetition != 1:
            with np.errstate(over="ignore"):
                penalized = np.where(held > 0, held / self._repetition, held * self._repetition)
            held = np.where(times > 0, np.minimum(penalized, _LARGEST), held)
        if self._counts_reply:
            held = np.where(made > 0, held - (self._presence + self._frequency * made), held)
        return ids, held

    def _slot_of(self, token: int) -> int:
        """Where `token` is counted; the arrays double when they are full, so a token stays O(1)."""
        slot = self._slot.setdefault(token, len(self._slot))
        if slot == len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)), axis=1)
        self._ids[slot] = token
        return slot
