"""Every script of bench/ runs, on the smallest input it takes: what is run by hand must not rot unseen."""

from __future__ import annotations

import importlib
import json
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
    "tool_calls": ("", ""),  # has a test of its own
    "serve_overhead": (
        "MODEL --rounds 1 --requests 2 --concurrent 2 --max-tokens 4 --firsts 1",
        "ms to the first text",
    ),
    "serve_soak": ("MODEL --clients 2 --minutes 0.03 --seeds 2 --max-tokens 4", "wrong: 0"),
}
NATIVE = {"attention", "kernels", "overhead", "sampling"}  # they measure the compiled kernels


def test_no_script_is_forgotten() -> None:
    assert {path.stem for path in BENCH.glob("*.py")} == set(SCRIPTS)


@pytest.fixture
def bfcl(tmp_path: Path) -> Path:
    """Data of the form that bench/tool_calls.py reads: one question of each category."""
    folder = tmp_path / "data"
    (folder / "possible_answer").mkdir(parents=True)
    parameters = {"type": "dict", "properties": {"n": {"type": "float"}}, "required": ["n"]}
    asked = {
        "id": "1",
        "question": [[{"role": "user", "content": "Halve 3."}]],
        "function": [{"name": "math.half", "description": "Half of n.", "parameters": parameters}],
    }
    for category in ("simple_python", "multiple", "parallel"):
        name = f"BFCL_v4_{category}.json"
        (folder / name).write_text(json.dumps(asked))
        answer = {"id": "1", "ground_truth": [{"math.half": {"n": [3]}}]}
        (folder / "possible_answer" / name).write_text(json.dumps(answer))
    return folder


def test_tool_calls_are_judged(tiny_chat: Path, bfcl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("fastapi", "uvicorn", "openai", "jsonschema", "llguidance"):
        pytest.importorskip(needed)
    monkeypatch.syspath_prepend(BENCH.parent / "tests" / "serve")
    server = importlib.import_module("running_server").RunningServer(tiny_chat).ready()
    try:
        arguments = [bfcl, "--url", f"{server.url}/v1", "--cases", "1", "--choice", "required"]
        command = [sys.executable, BENCH / "tool_calls.py", *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        server.stop()
    assert ended.returncode == 0, ended.stderr
    assert "invalid" not in ended.stdout
    assert ended.stdout.count(" 1/1  ") == 3, ended.stdout  # streamed as whole


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "tool_calls"])
def test_a_script_runs(name: str, tiny_chat: Path, tmp_path: Path) -> None:
    if name in NATIVE and not native.ready():
        pytest.skip(native.explain())
    if name.startswith("serve"):
        pytest.importorskip("uvicorn")
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
