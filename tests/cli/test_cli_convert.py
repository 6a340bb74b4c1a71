"""`qwenkit convert`: options, what is printed where, and errors that name the remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qwenkit.checkpoint import open_checkpoint
from qwenkit.cli.main import main

DATA = Path(__file__).parents[1] / "data"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["convert", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_what_is_lost_is_printed(tmp_path, capsys):
    assert run(DATA / "tiny_v1", "--to", "qwen2", "--out", tmp_path / "out") == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "note: Beyond 32 tokens" in shown.err
    assert "note: There is no tokenizer" in shown.err
    assert f"868.4 kB of weights written to {tmp_path / 'out'}" in shown.err
    assert open_checkpoint(tmp_path / "out").layout == "qwen2"


def test_every_option_reaches_its_place(tmp_path, tiny_chat):
    out = tmp_path / "out"
    assert run(tiny_chat, "--to", "v1", "--out", out, "--dtype", "float32", "--max-shard-size", "15MB",
               "--vocab-size", 151851) == 0  # fmt: skip
    assert len(list(out.glob("*.safetensors"))) == 3
    assert open_checkpoint(out).config.vocab_size == 151851
    assert open_checkpoint(out).quantization == "none (float32)"
    assert (
        run(tiny_chat, "--to", "gguf", "--out", tmp_path / "m.gguf", "--type", "Q8_0", "--arch", "qwen2") == 0
    )
    assert open_checkpoint(tmp_path / "m.gguf").config.architecture == "qwen2"
    assert open_checkpoint(tmp_path / "m.gguf").quantization == "GGUF Q8_0"


def test_dry_run_lists_everything_and_writes_nothing(tmp_path, capsys):
    arguments = (DATA / "tiny_v1", "--to", "qwen2", "--out", tmp_path / "out", "--max-shard-size", "300kB")
    assert run(*arguments, "--dry-run") == 0
    assert list(tmp_path.iterdir()) == []
    shown = capsys.readouterr()
    lines = [line.split() for line in shown.out.splitlines()]
    assert run(*arguments) == 0
    from safetensors.torch import load_file

    for file in (tmp_path / "out").iterdir():
        listed = [line for line in lines if line[0] == str(file)]
        assert len(listed) == 1, file
        if file.suffix == ".safetensors":
            held = load_file(file)
            assert int(listed[0][1]) == sum(t.numel() * t.element_size() for t in held.values())
            for name, tensor in held.items():
                shape = "x".join(map(str, tensor.shape))
                assert [name, "float32", shape, str(tensor.numel() * 4)] in lines
    assert "nothing was written" in shown.out
    assert "note: Beyond 32 tokens" in shown.out
    assert run(DATA / "tiny_v1_int4", "--to", "gguf", "--out", tmp_path / "m.gguf", "--dry-run") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((DATA, "--to", "v1", "--out", "x"), 1, "no config.json"),
        ((DATA / "nowhere", "--to", "v1", "--out", "x"), 1, "nowhere"),
        ((DATA / "tiny_v1", "--to", "onnx", "--out", "x"), 1, "v1, qwen2, gguf"),
        ((DATA / "tiny_v1", "--to", "qwen2", "--out", DATA / "tiny_v1"), 1, "Choose a new name"),
        ((DATA / "tiny_v1", "--to", "qwen2", "--out", "x.gguf"), 1, "a folder, no .gguf file"),
        ((DATA / "tiny_v1", "--to", "gguf", "--out", "x"), 1, "has no tokenizer"),
        ((DATA / "tiny_v1_int4", "--to", "v1", "--out", "x", "--dtype", "float16"), 1, "Leave --dtype out"),
        ((DATA / "tiny_v1", "--to", "v1", "--out", "x", "--dtype", "int3"), 1, "bfloat16"),
        ((DATA / "tiny_v1", "--to", "v1", "--out", "x", "--max-shard-size", "much"), 2, "5GB"),
        ((DATA / "tiny_v1", "--to", "v1", "--out", "x", "--max-shard-size", "0"), 1, "above 0"),
        ((DATA / "tiny_v1", "--to", "v1", "--out", "x", "--vocab-size", "100"), 1, "--vocab-size 512"),
        ((DATA / "tiny_v1", "--to", "v1"), 2, "--out"),
    ],
)
def test_errors_name_the_remedy(arguments, code, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(*arguments) == code
    shown = capsys.readouterr().err
    assert words in " ".join(shown.split())
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing_and_says_nothing(tmp_path, monkeypatch, capsys):
    from qwenkit.checkpoint import folder_plan

    def interrupted(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_plan, "write_safetensors", interrupted)
    assert run(DATA / "tiny_v1", "--to", "qwen2", "--out", tmp_path / "out") == 130
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capsys.readouterr().err


def test_a_full_disk_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert run(DATA / "tiny_v1", "--to", "qwen2", "--out", tmp_path / "out") == 1
    assert "needs 868.4 kB" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
