"""The written folder: complete, in the source's layout, and the same to every reader."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from gptq_unpacking import unpacked
from safetensors.torch import load_file
from tiny_sources import settings

from qwenkit import Qwen
from qwenkit.checkpoint import open_checkpoint
from qwenkit.quant.gptq_rounding import Rounding
from qwenkit.quantize import Report, quantize
from qwenkit.quantize.calibration import text_windows


@pytest.mark.parametrize(
    ("rounding", "method"),
    [
        (Rounding(4, 32), "gptq"),
        (Rounding(4, 16, symmetric=False, act_order=True), "gptq"),
        (Rounding(8, -1), "gptq"),
        (Rounding(4, 32, symmetric=False), "rtn"),
    ],
)
def test_readers_agree_on_every_weight(qwen2, eval_text, tmp_path, rounding, method):
    out = tmp_path / "out"
    report = quantize(qwen2, out, settings(rounding=rounding, method=method), eval_texts=[eval_text])
    written = open_checkpoint(out)
    assert written.layout == "qwen2"
    assert written.quantization.startswith(f"GPTQ int{rounding.bits}")
    model = written.load_model(dtype=torch.float32)
    for name, (codes, values) in unpacked(
        load_file(out / "model.safetensors"), written.config, rounding.bits
    ).items():
        assert torch.equal(model.get_submodule(name).dequantize(torch.float32), values), name
        assert int(codes.max()) < 1 << rounding.bits
    # what is not rounded is the source's, in 16 bits
    source = {tensor.name: tensor.read() for tensor in qwen2.planned(torch.float32)}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, source[name].bfloat16().float()), name
    for name, bias in model.named_buffers():
        if name.endswith("c_attn.bias"):
            assert torch.equal(bias, source[name].bfloat16().float())
    assert len(report.layers) == 3
    assert set(report.layers[0]) == {"attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj"}


def test_the_folder_is_whole_and_talks(v1, eval_text, tmp_path):
    out = tmp_path / "out"
    report = quantize(v1, out, settings(dtype="bfloat16"), eval_texts=[eval_text], max_increase=1000)
    assert report.state == "passed"
    written = open_checkpoint(out)
    assert written.layout == "qwen-v1"
    assert (written.config, written.generation) == (v1.config, v1.generation)
    assert written.tokenizer().encode("Hello 你好") == v1.tokenizer().encode("Hello 你好")
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"] == json.loads((out / "quantize_config.json").read_text())
    assert config["quantization_config"]["bits"] == 4
    qwen = Qwen.load(out, offline=True)
    assert qwen.chat("Hello", max_tokens=4)[0] is not None
    # the loss reported is that of the folder, measured another way
    ids = v1.tokenizer().encode(eval_text.read_text())[:100]
    scores = Qwen.load(out, offline=True, weights="exact", dtype="bfloat16").score(ids)
    assert len(scores) == 99
    on_disk = Report.read(out)
    assert on_disk is not None
    assert on_disk.state == "passed"
    assert on_disk.texts == report.texts
    assert set(report.seconds_per_token) == {"source", "result"}


def test_the_original_s_loss_is_what_the_engine_gives(qwen2, eval_text, tmp_path):
    report = quantize(qwen2, tmp_path / "out", settings(), eval_texts=[eval_text])
    length = qwen2.config.context_length
    qwen = Qwen.load(qwen2.path, offline=True, dtype="float32")
    windows = text_windows(eval_text.read_text(), qwen2.tokenizer(), 2, length)
    engine = -sum(sum(qwen.score(window)) for window in windows)
    assert report.texts[0].original == pytest.approx(engine, rel=1e-4)
    assert report.texts[0].tokens == sum(map(len, windows)) - 2


def test_gptq_loses_less_than_rounding_to_nearest(qwen2, eval_text, tmp_path):
    rounding = Rounding(4, 32)
    many = settings(rounding=rounding, samples=24, length=128)
    gptq = quantize(qwen2, tmp_path / "gptq", many, eval_texts=[eval_text])
    nearest = quantize(
        qwen2, tmp_path / "rtn", settings(method="rtn", rounding=rounding), eval_texts=[eval_text]
    )
    assert abs(gptq.increase) < abs(nearest.increase)
    assert nearest.calibration == {}


def test_a_result_that_is_worse_than_allowed_is_marked(qwen2, eval_text, tmp_path):
    report = quantize(qwen2, tmp_path / "out", settings(), eval_texts=[eval_text], max_increase=-100)
    assert report.state == "failed"
    assert json.loads((tmp_path / "out" / "quantize_report.json").read_text())["state"] == "failed"


def test_who_loads_a_failed_result_is_warned(qwen2, eval_text, tmp_path):
    failed, passed = tmp_path / "failed", tmp_path / "passed"
    quantize(qwen2, failed, settings(), eval_texts=[eval_text], max_increase=-100)
    quantize(qwen2, passed, settings(), eval_texts=[eval_text], max_increase=1e9)
    with pytest.warns(UserWarning, match=r"failed its own measurement: .* by .+ %, and -100 % was allowed"):
        Qwen.load(failed, offline=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Qwen.load(passed, offline=True)
        (passed / "quantize_report.json").write_text("{")
        Qwen.load(passed, offline=True)
