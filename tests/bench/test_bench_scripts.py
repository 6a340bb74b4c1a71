"""Every script of bench/ runs, on the smallest input it takes: what is run by hand must not rot unseen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenkit.kernels import native

BENCH = Path(__file__).parents[2] / "bench"

# MODEL and TEXT are replaced by a tiny checkpoint and a short text; the words must be in the output.
SCRIPTS = {
    "attention": ("--shape qwen2.5-0.5b --depth 16 --prompt 16 --repeats 1 --threads 1", "GB/s"),
    "grammar": ("MODEL --rounds 1 --max-tokens 8", "next mask"),
    "kernels": ("--repeats 1 --layers 1 --rows 512", "TOP/s"),
    "load": ("--size qwen2.5-0.5b --layers 1 --repeat 1", "ratio"),
    "long_context": (
        "MODEL TEXT --tokens 64 --trained 32 --bucket 32 --settings ntk+logn --caches auto",
        "perplexity",
    ),
    "lookup": ("MODEL --max-tokens 4 --rounds 1", "the replies are equal"),
    "overhead": ("MODEL --tokens 8", "kernels"),
    "perplexity": ("--model MODEL --text TEXT --windows 1 --length 32 --forms auto", "| form |"),
    "quantize": ("--size qwen2.5-0.5b --layers 1 --method rtn --group-size 64", "hours"),
    "reuse": ("MODEL --shared 64 --own 8 --rounds 1", "64 tokens reused"),
    "sampling": ("--rows 1 --repeats 1 --threads 1", "greedy"),
}
NATIVE = {"attention", "kernels", "overhead", "sampling"}  # they measure the compiled kernels


def test_no_script_is_forgotten() -> None:
    assert {path.stem for path in BENCH.glob("*.py")} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs(name: str, tiny_chat: Path, tmp_path: Path) -> None:
    if name in NATIVE and not native.ready():
        pytest.skip(native.explain())
    if name == "grammar":
        pytest.importorskip("llguidance")
    text = tmp_path / "text.txt"
    text.write_text("Every number has a place, and every place a name. " * 40)
    arguments, words = SCRIPTS[name]
    given = {"MODEL": str(tiny_chat), "TEXT": str(text)}
    ended = subprocess.run(
        [sys.executable, BENCH / f"{name}.py", *(given.get(word, word) for word in arguments.split())],
        env=os.environ | {"QWENKIT_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert words in ended.stdout
