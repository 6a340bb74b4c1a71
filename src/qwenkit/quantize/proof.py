"""The written folder, loaded as its users will load it: how well it predicts, how fast it writes."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import torch

from qwenkit.checkpoint import Checkpoint
from qwenkit.core import SamplingParams
from qwenkit.engine import Qwen
from qwenkit.engine.memory import free_memory

_PROMPT = 32  # tokens
_WRITTEN = 16
_SHARE = 0.7  # of the free memory that loading the source may take


def folder_losses(folder: Path, texts: Sequence[Sequence[int]], dtype: str) -> list[float]:
    """For each text the sum of -log p of its tokens but the first, by the stored values (weights="exact")."""
    qwen = Qwen.load(folder, device="cpu", dtype=dtype, weights="exact", offline=True, progress=False)
    losses = [-sum(qwen.score(ids)) for ids in texts]
    del qwen
    gc.collect()
    return losses


def seconds_per_token(checkpoint: Checkpoint, ids: Sequence[int]) -> float | None:
    """Of one reply, after the prompt is read, in the form that runs fastest; None if it may not fit."""
    if sum(entry.nbytes for entry in checkpoint.entries()) > _SHARE * free_memory(torch.device("cpu")):
        return None
    qwen = Qwen.load(checkpoint.path, device="cpu", offline=True, progress=False, speculate="off")
    asked = SamplingParams(temperature=0.0, max_tokens=1 + _WRITTEN, ignore_eos=True)
    prompt = list(ids[:_PROMPT])
    qwen.generate_ids([prompt], max_tokens=2)  # the first product of each kernel is slower
    timings = qwen.generate_ids([prompt], asked)[0].timings
    del qwen
    gc.collect()
    return timings.decode_s / _WRITTEN
