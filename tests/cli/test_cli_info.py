"""`qwenkit info`: numbers of the published sizes, and what real files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qwenkit.cli.main import app
from qwenkit.cli.memory import cache_bytes, size, weight_bytes
from qwenkit.model import SIZES

DATA = Path(__file__).parents[1] / "data"


def info(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["info", *arguments])


@pytest.mark.parametrize(
    ("name", "kib_per_token", "parameters"),
    # 2 x layers x width x 2 bytes; parameter counts of the published safetensors
    [
        ("qwen-1.8b", 192, 1_836_828_672),
        ("qwen-7b", 512, 7_721_324_544),
        ("qwen-14b", 800, 14_167_290_880),
        ("qwen-72b", 2560, 72_287_920_128),
        ("qwen2.5-0.5b", 12, 494_032_768),
    ],
)
def test_published_sizes(name: str, kib_per_token: int, parameters: int) -> None:
    facts = json.loads(info("--shape", name, "--json").stdout)
    assert facts["cache_bytes_per_1024_tokens"]["16-bit"] == kib_per_token * 1024 * 1024
    assert facts["parameters"] == parameters
    assert facts["weight_bytes"]["16-bit"] == 2 * parameters


def test_quantized_weights_are_near_the_published_int4_files() -> None:
    # Qwen-7B-Chat-Int4 on the hub is 5.86 GB, Qwen-7B-Chat-Int8 9.13 GB.
    config = SIZES["qwen-7b"]
    assert weight_bytes(config, 4) == pytest.approx(5.86e9, rel=0.03)
    assert weight_bytes(config, 8) == pytest.approx(9.13e9, rel=0.03)


def test_eight_bit_cache_counts_its_scales() -> None:
    # per token, layer and head: 128 codes and 2 x 16 bits for keys, the same for values
    assert cache_bytes(SIZES["qwen-7b"], 1, 8) == 32 * 32 * 2 * (128 + 4)


@pytest.mark.parametrize(
    ("tokens", "alpha", "logn", "fits"),
    [(8192, 1, False, True), (20000, 7, True, True), (40000, 15, True, False)],
)
def test_at_context(tokens: int, alpha: float, logn: bool, fits: bool) -> None:
    at = json.loads(info("--shape", "qwen-7b", "--context", str(tokens), "--json").stdout)["at_context"]
    assert (at["ntk_alpha"], at["logn"], at["fits"]) == (alpha, logn, fits)
    assert at["cache_bytes"]["16-bit"] == tokens * 512 * 1024


def test_table_for_people() -> None:
    done = info("--shape", "qwen-14b", "--context", "4000")
    assert "dynamic NTK and LogN from token 2049 on" in done.stdout
    assert "800.0 MiB in 16 bits" in done.stdout
    assert "NTK alpha 3" in done.stdout
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


def test_unknown_shape_and_two_sources() -> None:
    done = info("--shape", "qwen-8b")
    assert done.exit_code == 1
    assert "qwen-7b" in done.stderr
    assert info("model", "--shape", "qwen-7b").exit_code == 2


def test_a_real_folder_without_its_vocabulary() -> None:
    folder = DATA / "tiny_v1"
    facts = json.loads(info(str(folder), "--json").stdout)
    assert facts["layout"] == "qwen-v1"
    assert facts["parameters"] == facts["stored_bytes"] // 4  # it is stored in float32
    on_disk = sum(f.stat().st_size for f in folder.iterdir() if f.match("model*.safetensors"))
    assert 0.9 * on_disk < facts["stored_bytes"] <= on_disk
    assert (
        facts["config"]["num_layers"] == json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    )
    assert "tokenizer_problem" in facts or "tokenizer" in facts
    assert info(str(folder)).exit_code == 0


def test_a_path_that_does_not_exist() -> None:
    done = info("/nowhere/at/all")
    assert done.exit_code == 1
    assert "/nowhere/at/all" in done.stderr


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (201326592, "192.0 MiB"),
        (5 << 40, "5120.00 GiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text
