"""`qwenkit merge`: what is printed where, and errors that name the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenkit.checkpoint import open_checkpoint
from qwenkit.cli.main import main

MODULE = "base_model.model.transformer.h.1.attn.c_attn"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "my-lora"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": r".*h\.1\..*c_attn"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {f"{MODULE}.lora_A.weight": torch.ones(2, 32), f"{MODULE}.lora_B.weight": torch.ones(96, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["merge", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_it_says_what_was_merged(tiny_chat, adapter, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(tiny_chat, adapter, "--out", out, "--dtype", "float32", "--max-shard-size", "15MB") == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "The LoRA adapter my-lora is merged into 1 of" in shown.err
    assert f"of weights written to {out}" in shown.err
    assert len(list(out.glob("*.safetensors"))) > 1
    assert open_checkpoint(out).quantization == "none (float32)"
    name = "transformer.h.1.attn.c_attn.weight"
    before = load_file(tiny_chat / "model.safetensors")[name].float()
    after = next(held[name] for held in map(load_file, out.glob("*.safetensors")) if name in held)
    torch.testing.assert_close(after, before + 4.0, rtol=0, atol=1e-6)  # 4 / 2 times the two products


def test_dry_run_lists_what_would_change(tiny_chat, adapter, tmp_path, capsys):
    assert run(tiny_chat, adapter, "--out", tmp_path / "out", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(None, 2) == ["transformer.h.1.attn.c_attn.weight", "96x32", "LoRA, rank 2, scale 2"]
    assert "1 of " in lines[1]
    assert "nothing was written" in lines[1]
    assert [path.name for path in tmp_path.iterdir()] == ["my-lora"]


SMALL = ["--calibration", Path(__file__).parents[2] / "README.md", "--samples", 4, "--length", 64]


def test_a_gptq_base_is_quantized_again(tiny_chat, adapter, tmp_path, capsys):
    base, out, text = tmp_path / "int4", tmp_path / "out", tmp_path / "text.txt"
    text.write_text(SMALL[1].read_text()[:2500])
    measured = ["--eval-text", text, "--max-ppl-increase"]
    quantized = ["quantize", tiny_chat, "--out", base, "--method", "rtn", "--group-size", 16]
    with pytest.raises(SystemExit):
        main([str(argument) for argument in (*quantized, *measured, 1000)])
    assert run(base, adapter, "--out", out, "--dry-run") == 0
    assert "1 of " in capsys.readouterr().out
    assert run(base, adapter, "--out", out, *SMALL, *measured, 1000) == 0
    assert "perplexity: " in capsys.readouterr().out
    report = json.loads((out / "quantize_report.json").read_text())
    assert (report["state"], report["command"]["settings"]["method"]) == ("passed", "gptq")
    assert open_checkpoint(out).quantization == "GPTQ int4 g16"
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out))
    changed = {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"transformer.h.1.attn.c_attn"}
    assert run(base, adapter, "--out", tmp_path / "rtn", "--requantize", "rtn", *measured, -100) == 3
    assert "--requantize none" in " ".join(capsys.readouterr().err.split())
    assert run(base, adapter, "--out", tmp_path / "floats", "--requantize", "none") == 0
    assert open_checkpoint(tmp_path / "floats").gptq is None
    assert "is dequantized" in capsys.readouterr().err
    assert run(base, adapter, "--out", tmp_path / "x", "--dtype", "float32") == 1
    assert "Add --requantize none" in " ".join(capsys.readouterr().err.split())
    assert run(tiny_chat, adapter, "--out", tmp_path / "x", "--requantize", "gptq") == 1
    assert "not quantized by GPTQ" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("BASE", "nowhere/", "--out", "x"), 1, "no file or folder nowhere"),
        (("BASE", "BASE", "--out", "x"), 1, "is no LoRA adapter"),
        (("ADAPTER", "BASE", "--out", "x"), 1, "qwenkit merge BASE"),
        (("BASE", "ADAPTER", "--out", "x.gguf"), 1, "a folder, no .gguf file"),
        (("BASE", "ADAPTER", "--out", "BASE"), 1, "Choose a new name"),
        (("BASE", "ADAPTER", "--out", "x", "--dtype", "int3"), 1, "bfloat16"),
        (("BASE", "ADAPTER", "--out", "x", "--max-shard-size", "much"), 2, "5GB"),
        (("BASE", "ADAPTER"), 2, "--out"),
    ],
)
def test_errors_name_the_remedy(arguments, code, words, tiny_chat, adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"BASE": tiny_chat, "ADAPTER": adapter}
    assert run(*(places.get(argument, argument) for argument in arguments)) == code
    shown = capsys.readouterr().err
    assert words in " ".join(shown.split())
    assert "Traceback" not in shown
    assert [path.name for path in tmp_path.iterdir()] == ["my-lora"]
