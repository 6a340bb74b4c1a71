"""A model that says what a test wants, and the ids of the byte tokenizer's special tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qwenkit.model import CausalLM, ModelConfig, TokenBatch

END, START, STOP, EXTRA = 256, 257, 258, 259
SPECIAL = {"<|endoftext|>": END, "<|im_start|>": START, "<|im_end|>": STOP, "<|extra_0|>": EXTRA}


class ScriptedLM(CausalLM):
    """Says `script` after any prompt of `prompt_length` tokens, whatever the prompt is; counts its passes."""

    def __init__(self, script: Sequence[int], prompt_length: int, rows: int = 272) -> None:
        super().__init__(
            ModelConfig(
                vocab_size=rows,
                hidden_size=4,
                num_layers=1,
                num_heads=1,
                num_kv_heads=1,
                head_dim=4,
                ffn_size=4,
                rotary_dim=4,
                seq_length=4096,
                max_positions=4096,
            )
        )
        self.script = list(script)
        self.prompt_length = prompt_length
        self.passes = 0
        self.poison: float | None = None
        self.interrupt_at: int | None = None

    def forward(self, tokens: Tensor, batch: TokenBatch, last: int = 0, at: Tensor | None = None) -> Tensor:
        self.passes += 1
        if self.passes == self.interrupt_at:
            raise KeyboardInterrupt
        slots = [tokens.shape[1] - 1] if at is None else at.tolist()
        logits = torch.zeros(1, len(slots), self.shape.vocab_size)
        for i, slot in enumerate(slots):
            said = int(batch.positions[0, slot]) + 1 - self.prompt_length
            logits[0, i, self.script[min(said, len(self.script) - 1)]] = 50.0
        if self.poison is not None:
            logits[0, :1, 3] = self.poison
        return logits
