"""vLLM on what was converted to the Qwen2 layout, floats and GPTQ: the same greedy tokens.

Needs the Python that QWENKIT_PEER_VLLM_PYTHON names, with vllm for the CPU in it.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qwenkit.checkpoint import locate, open_checkpoint, plan_conversion
from qwenkit.core import Message
from qwenkit.model import Batch, CausalLM, ModelConfig
from qwenkit.text import chatml

pytestmark = [pytest.mark.peer, pytest.mark.timeout(1200)]  # vLLM compiles, and loads for minutes

COUNT = 32
QUESTIONS = (
    "What is the capital of France?",
    "用中文介绍一下你自己。",
    "Write a palindrome checker in Python.",
)


def greedy(folder: Path, dtype: str, prompts: list[list[int]]) -> list[list[int]]:
    python = os.environ.get("QWENKIT_PEER_VLLM_PYTHON")
    if not python:
        pytest.skip("peer tier: name a Python that has vllm in QWENKIT_PEER_VLLM_PYTHON")
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
def check(model: CausalLM, prompts: list[list[int]], answers: list[list[int]], tie: float) -> float:
    """Each of their tokens is the best of ours, or as good within `tie`; returns the share of equal ones."""
    equal = 0
    for prompt, tokens in zip(prompts, answers, strict=True):
        ids = list(prompt)
        for at, token in enumerate(tokens):
            logits = model(torch.tensor([ids]), Batch.make(1, len(ids)), last=1)[0, -1].float()
            assert float(logits.max() - logits[token]) < tie, f"token {at}"
            equal += int(logits.argmax()) == token
            ids.append(token)
    return equal / (len(prompts) * COUNT)


@pytest.mark.model
def test_real_weights_by_way_of_v1(tmp_path: Path) -> None:
    demo = open_checkpoint(locate("demo").path)
    plan_conversion(demo, "v1", dtype=torch.float32).write(tmp_path / "v1")
    v1 = open_checkpoint(tmp_path / "v1")
    plan_conversion(v1, "qwen2").write(tmp_path / "qwen2")
    tokenizer = v1.tokenizer()
    prompts = [
        chatml.encode(tokenizer, [Message("user", q)], default_system=v1.generation.default_system)
        for q in QUESTIONS
    ]
    answers = greedy(tmp_path / "qwen2", "float32", prompts)
    assert check(v1.load_model(dtype=torch.float32), prompts, answers, tie=1e-3) > 0.99


def gptq_v1(folder: Path) -> Path:
    """A small random v1 model, rounded to GPTQ int4 here: groups of 128, the middle as zero, minus one."""
    config = ModelConfig(
        vocab_size=512, hidden_size=256, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=64, ffn_size=512,
        rotary_dim=64, seq_length=512, max_positions=512, initializer_range=0.3,
    )  # fmt: skip
    model = CausalLM(config).initialize(5)
    generator = torch.Generator().manual_seed(6)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if name.endswith("bias") or "ln_" in name:
            value = value.clone().normal_(0.5, 0.3, generator=generator)
        module = name.removesuffix(".weight")
        if not (name.startswith("transformer.h.") and value.dim() == 2):
            tensors[name] = value.half()
            continue
        rows, columns = value.shape
        grouped = value.view(rows, -1, 128)
        scales = (2 * grouped.abs().amax(-1) / 15).half()
        codes = (grouped / scales.float()[..., None] + 8).round().clamp(0, 15)
        codes = codes.view(rows, columns).t().long().view(columns // 8, 8, rows)
        words = sum(codes[:, i] << (4 * i) for i in range(8))
        tensors |= {
            f"{module}.qweight": (words - ((words >> 31) << 32)).int().contiguous(),
            f"{module}.qzeros": torch.full((columns // 128, rows // 8), 0x77777777, dtype=torch.int32),
            f"{module}.scales": scales.t().contiguous(),
            f"{module}.g_idx": torch.arange(columns, dtype=torch.int32) // 128,
        }
        if not module.endswith("c_attn"):
            tensors[f"{module}.bias"] = torch.zeros(rows, dtype=torch.float16)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True, "damp_percent": 0.01}
    (folder / "quantize_config.json").write_text(json.dumps(quantization))
    described = config.to_v1_dict() | {"quantization_config": quantization | {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def test_gptq_from_v1(tmp_path: Path) -> None:
    """vLLM rounds activations to bfloat16, so a token may be one nearly as good. It has no int8 here."""
    source = open_checkpoint(gptq_v1(tmp_path / "v1"))
    plan_conversion(source, "qwen2").write(tmp_path / "qwen2")
    prompts = [[7, 300, 11, 45, 99], list(range(20, 60)), [501]]
    answers = greedy(tmp_path / "qwen2", "bfloat16", prompts)
    model = source.load_model(dtype=torch.float32)
    logits = model(torch.tensor([prompts[1]]), Batch.make(1, 40))
    assert check(model, prompts, answers, tie=0.1 * float(logits.std())) > 0.8
