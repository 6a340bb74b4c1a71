"""vLLM on what was converted to the Qwen2 layout, floats and GPTQ: the same greedy tokens.

Needs the Python that QWENKIT_PEER_VLLM_PYTHON names, with vllm for the CPU in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from vllm_answers import chats, check, greedy

from qwenkit.checkpoint import Checkpoint, locate, open_checkpoint, plan_conversion
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.quant import AffineLinear
from qwenkit.quantize import Settings, quantize

pytestmark = [pytest.mark.peer, pytest.mark.timeout(1200)]  # vLLM compiles, and loads for minutes


@pytest.mark.model
def test_real_weights_by_way_of_v1(tmp_path: Path) -> None:
    demo = open_checkpoint(locate("demo").path)
    plan_conversion(demo, "v1", dtype=torch.float32).write(tmp_path / "v1")
    v1 = open_checkpoint(tmp_path / "v1")
    plan_conversion(v1, "qwen2").write(tmp_path / "qwen2")
    prompts = chats(v1)
    answers = greedy(tmp_path / "qwen2", "float32", prompts)
    assert check(v1.load_model(dtype=torch.float32), prompts, answers, tie=1e-3) > 0.99


@pytest.mark.model
def test_real_weights_in_four_bits(tmp_path: Path) -> None:
    """What `quantize` writes, as it is; rounded to nearest, which is sooner done and to a reader the same as
    GPTQ."""
    demo = open_checkpoint(locate("demo").path)
    quantize(demo, tmp_path / "int4", Settings(method="rtn"), max_increase=1000)
    ours = open_checkpoint(tmp_path / "int4")
    prompts = chats(ours)
    answers = greedy(tmp_path / "int4", "bfloat16", prompts)
    assert check(ours.load_model(dtype=torch.float32), prompts, answers, tie=as_vllm(ours)) > 0.9


def as_vllm(checkpoint: Checkpoint) -> CausalLM:
    """What vLLM 0.32 makes of GPTQ on a CPU with AMX: bfloat16, and the inputs of these layers in 8 bits."""
    model = checkpoint.load_model(dtype=torch.bfloat16)

    def rounded(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        (x,) = inputs
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-20) / 127
        return (x / step).round() * step

    for layer in model.modules():
        if isinstance(layer, AffineLinear):
            layer.register_forward_pre_hook(rounded)
    return model


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
    """In 4 bits: vLLM has no GPTQ of 8 on CPUs."""
    source = open_checkpoint(gptq_v1(tmp_path / "v1"))
    plan_conversion(source, "qwen2").write(tmp_path / "qwen2")
    prompts = [[7, 300, 11, 45, 99], list(range(20, 60)), [501]]
    answers = greedy(tmp_path / "qwen2", "bfloat16", prompts)
    assert check(source.load_model(dtype=torch.float32), prompts, answers, tie=as_vllm(source)) > 0.8
