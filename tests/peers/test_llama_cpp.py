"""The demo model against llama.cpp on the same weights, in float32: the same tokens, or a tie.

Needs llama-cpp-python, here or in the Python that QWENKIT_PEER_LLAMA_CPP_PYTHON names (a build of its own
suits it).
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from client_python import client_python

from qwenkit.checkpoint import locate, open_checkpoint
from qwenkit.core import Message
from qwenkit.model import Batch, DenseCache
from qwenkit.text import chatml

QUESTIONS = [
    "What is the capital of France, and what is it known for?",
    "用中文介绍一下你自己。",
    "Write a Python function that checks whether a string is a palindrome.",
    "Explain in two sentences why the sky is blue.",
    "List five prime numbers and say why each is prime.",
]
COUNT = 64
TIE = 1e-3
"""Logits closer than this may order either way: two exact float32 programs add in different orders."""

pytestmark = [pytest.mark.peer, pytest.mark.model]


@torch.inference_mode()
def test_greedy_tokens_of_the_demo_model_equal_llama_cpp(tmp_path: Path) -> None:
    python = client_python("llama_cpp", "llama-cpp-python")
    located = locate("demo")
    checkpoint = open_checkpoint(located.path)
    tokenizer = checkpoint.tokenizer()
    prompts = [
        chatml.encode(tokenizer, [Message("user", q)], default_system=checkpoint.generation.default_system)
        for q in QUESTIONS
    ]
    script = Path(__file__).with_name("llama_cpp_greedy.py")
    out = subprocess.run(
        [python, str(script), str(located.path), str(tmp_path), str(COUNT)],
        input=json.dumps(prompts), capture_output=True, text=True, check=True, timeout=1500,
    )  # fmt: skip
    theirs = json.loads(out.stdout)

    model = checkpoint.load_model(dtype=torch.float32)
    for question, prompt, peer in zip(QUESTIONS, prompts, theirs, strict=True):
        cache = DenseCache(model.shape.num_layers)
        tokens = torch.tensor([prompt])
        past = 0
        for at, (expected, margin) in enumerate(zip(peer["tokens"], peer["margins"], strict=True)):
            logits = model(tokens, Batch.make(1, tokens.shape[1], past=past, cache=cache), last=1)[0, -1]
            past += tokens.shape[1]
            ours = int(logits.argmax())
            if ours != expected:
                assert margin < TIE, f"{question!r}: token {at} is {ours}, llama.cpp says {expected}"
                assert float(logits[ours] - logits[expected]) < TIE
                break  # a tie: from here the texts may differ
            tokens = torch.tensor([[ours]])
