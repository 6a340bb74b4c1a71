"""llama.cpp on what was converted: the same greedy tokens from the same weights, token ids, stops, template.

Needs llama-cpp-python, here or in the Python that QWENKIT_PEER_LLAMA_CPP_PYTHON names.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from client_python import client_python
from test_llama_cpp import TIE

from qwenkit.checkpoint import Checkpoint, locate, open_checkpoint, plan_conversion, write_checkpoint
from qwenkit.core import GenerationConfig, Message
from qwenkit.model import Batch, CausalLM, ModelConfig
from qwenkit.text import Tokenizer, chatml

pytestmark = [pytest.mark.peer, pytest.mark.timeout(1200)]

COUNT = 32
QUESTIONS = (
    "What is the capital of France?",
    "用中文介绍一下你自己。",
    "Write a palindrome checker in Python.",
)
TEXT = "<|im_start|>user\nHello, 你好!  1234 ﬁ don't\r\n\n\t x<|im_end|> <|extra_7|>"


def run(script: str, *arguments: object, given: object) -> list:
    python = client_python("llama_cpp", "llama-cpp-python")
    out = subprocess.run(
        [python, str(Path(__file__).with_name(script)), *map(str, arguments)],
        input=json.dumps(given), capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr[-2000:]
    return json.loads(out.stdout)


@torch.inference_mode()
def check_greedy(checkpoint: Checkpoint, gguf: Path, work: Path, prompts: list[list[int]]) -> None:
    """Their tokens are ours in float32, or a tie."""
    theirs = run("llama_cpp_greedy.py", gguf, work, COUNT, given=prompts)
    model = checkpoint.load_model(dtype=torch.float32)
    for prompt, peer in zip(prompts, theirs, strict=True):
        ids = list(prompt)
        for at, expected in enumerate(peer["tokens"]):
            logits = model(torch.tensor([ids]), Batch.make(1, len(ids)), last=1)[0, -1]
            if int(logits.argmax()) != expected:
                assert float(logits.max() - logits[expected]) < TIE, f"token {at}"
                break
            ids.append(expected)


@pytest.fixture
def random_chat(vocabulary: Path, tmp_path: Path) -> Path:
    """A small random v1 model, sure of its tokens, with the real vocabulary."""
    config = ModelConfig(
        vocab_size=151936, hidden_size=128, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=32,
        ffn_size=192, rotary_dim=32, seq_length=512, max_positions=2048, dynamic_ntk=True, logn=True,
        initializer_range=0.5,
    )  # fmt: skip
    model = CausalLM(config).initialize(3)
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "ln_" in name:
            parameter.data.normal_(0.5, 0.3, generator=generator)
    write_checkpoint(
        model, config, Tokenizer.from_tiktoken(vocabulary), tmp_path / "random", layout="qwen-v1",
        dtype=torch.bfloat16, generation=GenerationConfig(stop_token_ids=(151645, 151643)),
    )  # fmt: skip
    return tmp_path / "random"


@pytest.mark.parametrize(
    ("arch", "form"),
    [("qwen", "f32"), ("qwen2", "f32"), ("qwen", "bf16"), ("qwen", "f16"), ("qwen", "q8_0"),
     ("qwen2", "q4_0"), ("qwen", "q4_1")],
)  # fmt: skip
def test_random_model(random_chat: Path, tmp_path: Path, arch: str, form: str) -> None:
    source = open_checkpoint(random_chat)
    gguf = tmp_path / f"{arch}-{form}.gguf"
    plan_conversion(source, "gguf", arch=arch, form=form).write(gguf)
    tokenizer = source.tokenizer()
    prompts = [tokenizer.encode(text) for text in (*QUESTIONS, TEXT)]
    there = source if form in ("f32", "bf16") else open_checkpoint(gguf)
    check_greedy(there, gguf, tmp_path, prompts)
    about = run("llama_cpp_vocabulary.py", gguf, given=[TEXT, *QUESTIONS])
    assert about["ids"] == [tokenizer.encode(t, allow_special=True) for t in (TEXT, *QUESTIONS)]
    assert (about["eos"], about["add_bos"]) == (151645, False)
    assert {151643, 151645} <= set(about["ends"])
    assert about["metadata"][f"{arch}.context_length"] == "512"
    assert "Beyond 512 tokens" in about["metadata"]["general.description"]
    assert about["template"] == chatml.jinja_template()
    assert about["chat"] == chatml.render([Message("system", TEXT), Message("user", QUESTIONS[0])])


@pytest.mark.model
@pytest.mark.parametrize("arch", ["qwen", "qwen2"])
def test_real_weights_by_way_of_v1(tmp_path: Path, arch: str) -> None:
    located = locate("demo")
    demo = open_checkpoint(located.path)
    plan_conversion(demo, "v1", dtype=torch.float32).write(tmp_path / "v1")
    v1 = open_checkpoint(tmp_path / "v1")
    plan_conversion(v1, "gguf", arch=arch).write(tmp_path / "m.gguf")
    tokenizer = v1.tokenizer()
    prompts = [
        chatml.encode(tokenizer, [Message("user", q)], default_system=v1.generation.default_system)
        for q in QUESTIONS
    ]
    check_greedy(demo, tmp_path / "m.gguf", tmp_path, prompts)
