"""An adapter merged into a GPTQ base: what it does not touch keeps its words, the rest is rounded again."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_resuming import StopAt
from tiny_sources import TEXT

from qwenkit.checkpoint import MergedCheckpoint, open_checkpoint, read_adapter
from qwenkit.core import RequestError, UnsupportedError
from qwenkit.quant.gptq_rounding import Rounding
from qwenkit.quantize import Settings, quantize, settings_like

KINDS = ("qweight", "qzeros", "scales", "g_idx")
SMALL = {"calibration": str(TEXT), "samples": 24, "length": 64, "dtype": "float32"}


def write_adapter(folder, modules, size=0.1):
    """Rank 4, scale 1, for modules of the tiny models: name -> (outputs, inputs)."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for name, (rows, columns) in modules.items():
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * size
        tensors[f"{key}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * size
    save_file(tensors, folder / "adapter_model.safetensors")
    return read_adapter(folder)


def base_of(source, folder, eval_text, rounding):
    quantize(source, folder, Settings(rounding=rounding, **SMALL), eval_texts=[eval_text])
    return open_checkpoint(folder)


QWEN2 = {"model.layers.1.self_attn.q_proj": (64, 64), "model.layers.1.self_attn.v_proj": (32, 64),
         "model.layers.2.mlp.down_proj": (64, 96)}  # fmt: skip


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize(
    "rounding", [Rounding(4, 32), Rounding(4, 32, symmetric=False, act_order=True), Rounding(8, -1)]
)
def test_what_is_not_touched_keeps_its_words(qwen2, eval_text, tmp_path, method, rounding):
    base = base_of(qwen2, tmp_path / "base", eval_text, rounding)
    merged = MergedCheckpoint(base, write_adapter(tmp_path / "adapter", QWEN2, size=0.25))
    asked = settings_like(base, method=method, **SMALL)
    assert (asked.rounding.bits, asked.rounding.group) == (rounding.bits, rounding.group)
    out = tmp_path / "out"
    report = quantize(merged, out, asked, eval_texts=[eval_text], max_increase=1000)
    before, after = load_file(tmp_path / "base" / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        module, _, kind = name.rpartition(".")
        if kind in KINDS and module in QWEN2:
            assert kind != "qweight" or not torch.equal(before[name], after[name]), name
        else:
            assert torch.equal(before[name], after[name]), name
    for key in ("bits", "group_size", "sym", "desc_act"):
        configs = [json.loads((f / "quantize_config.json").read_text())[key] for f in (base.path, out)]
        assert configs[0] == configs[1], key
    # near the floats: nearer than the base, which lacks the adapter
    floats = merged.load_model(dtype=torch.float32)
    result, old = (open_checkpoint(folder).load_model(dtype=torch.float32) for folder in (out, base.path))
    for name in ("transformer.h.1.attn.c_attn", "transformer.h.2.mlp.c_proj"):
        wanted = floats.get_submodule(name).weight
        error = (result.get_submodule(name).dequantize(torch.float32) - wanted).norm()
        assert error < 0.5 * (old.get_submodule(name).dequantize(torch.float32) - wanted).norm()
    assert report.layers[0] == dict.fromkeys(report.layers[0], 0.0)
    assert report.layers[2]["mlp.c_proj"] > 0
    assert "source" not in report.seconds_per_token
    assert "adapter is merged into" in (out / "README.txt").read_text()


def test_the_reported_original_is_base_and_adapter_in_floats(v1, eval_text, tmp_path):
    from qwenkit import Qwen
    from qwenkit.checkpoint import plan_merge

    base = base_of(v1, tmp_path / "base", eval_text, Rounding(4, 32))
    adapter = write_adapter(tmp_path / "adapter", {"transformer.h.0.attn.c_attn": (192, 64)}, size=0.5)
    asked = settings_like(base, **SMALL)
    report = quantize(
        MergedCheckpoint(base, adapter), tmp_path / "out", asked, eval_texts=[eval_text], max_increase=1000
    )
    plan_merge(base, adapter, dtype=torch.float32).write(tmp_path / "floats")
    known = base_of(open_checkpoint(tmp_path / "floats"), tmp_path / "again", eval_text, Rounding(4, 32))
    wanted = json.loads((known.path / "quantize_report.json").read_text())["texts"]
    assert report.texts[0].original == pytest.approx(wanted[0]["original"], rel=1e-5)
    assert Qwen.load(tmp_path / "out", offline=True).config == base.config


def test_an_interrupted_run_continues_to_the_same_bytes(qwen2, eval_text, tmp_path):
    base = base_of(qwen2, tmp_path / "base", eval_text, Rounding(4, 32))
    adapter = write_adapter(tmp_path / "adapter", QWEN2)
    asked = settings_like(base, **SMALL)
    for name in ("whole", "out"):
        if name == "out":
            with pytest.raises(KeyboardInterrupt):
                quantize(
                    MergedCheckpoint(base, adapter), tmp_path / name, asked,
                    eval_texts=[eval_text], watch=StopAt(20),
                )  # fmt: skip
            assert not (tmp_path / name).exists()
        quantize(MergedCheckpoint(base, adapter), tmp_path / name, asked, eval_texts=[eval_text])
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "out")]
    assert files[0] == files[1]


def test_a_small_adapter_is_not_lost(qwen2, eval_text, tmp_path):
    """Far below a step of the grid: GPTQ on the base's own grid comes nearer to it than a new rounding."""
    base = base_of(qwen2, tmp_path / "base", eval_text, Rounding(4, 32))
    adapter = write_adapter(tmp_path / "adapter", {"transformer.h.0.mlp.w1": (96, 64)}, size=0.06)
    merged = MergedCheckpoint(base, adapter)
    errors = {}
    for method in ("gptq", "rtn"):
        out = tmp_path / method
        quantize(merged, out, settings_like(base, method=method, **SMALL), eval_texts=[eval_text])
        name = "transformer.h.0.mlp.w1"
        wanted = merged.load_model(dtype=torch.float32).get_submodule(name).weight
        found = open_checkpoint(out).load_model(dtype=torch.float32).get_submodule(name)
        errors[method] = float((found.dequantize(torch.float32) - wanted).norm() / wanted.norm())
    assert errors["gptq"] < errors["rtn"]


def test_refusals(qwen2, eval_text, tmp_path):
    with pytest.raises(RequestError, match=r"not quantized by GPTQ.*qwenkit quantize"):
        settings_like(qwen2)
    base = base_of(qwen2, tmp_path / "base", eval_text, Rounding(4, 32))
    with pytest.raises(RequestError, match="quantized already"):
        quantize(base, tmp_path / "out", settings_like(base, **SMALL))
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    order = tensors["model.layers.0.self_attn.q_proj.g_idx"]
    tensors["model.layers.0.self_attn.q_proj.g_idx"] = order.flip(0).contiguous()
    save_file(tensors, file)
    merged = MergedCheckpoint(open_checkpoint(tmp_path / "base"), write_adapter(tmp_path / "adapter", QWEN2))
    with pytest.raises(UnsupportedError, match="grouped in another order"):
        quantize(merged, tmp_path / "out", settings_like(base, **SMALL))
