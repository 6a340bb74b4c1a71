"""Other engines: how they are found, what they are given, what is said where they cannot run."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripted_engines import good
from typer.testing import CliRunner

from qwenkit.bench.peers import catalog
from qwenkit.bench.peers.files import Source
from qwenkit.bench.peers.random_gguf import write_random_gguf
from qwenkit.bench.workload import Point
from qwenkit.checkpoint import open_checkpoint
from qwenkit.checkpoint.gguf_file import GGUFFile
from qwenkit.cli.main import app
from qwenkit.core import RequestError, UnsupportedError
from qwenkit.model import Batch, ModelConfig
from qwenkit.quant import AffineLinear

TINY = ModelConfig(
    vocab_size=512, hidden_size=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64, ffn_size=512,
    rotary_dim=64, architecture="qwen2",
)  # fmt: skip
MATRICES = 2 * (256 * 256 + 2 * 128 * 256 + 256 * 256 + 3 * 256 * 512)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWENKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def source(model: Path) -> Source:
    return Source(str(model), None, offline=True, say=lambda text: None)


def adapter(name: str) -> Any:
    spec = importlib.util.spec_from_file_location("adapter", catalog._HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_peers_are_chosen_by_name() -> None:
    assert catalog.choose(["all"]) == list(catalog.PEERS)
    assert [peer.name for peer in catalog.choose(["vllm", "llama-cpp", "vllm"])] == ["vLLM", "llama.cpp"]
    with pytest.raises(RequestError, match=r"'exllama'.*openvino.*llama-cpp"):
        catalog.choose(["exllama"])


def test_a_python_is_named_by_a_variable_or_is_this_one() -> None:
    peer = next(peer for peer in catalog.PEERS if peer.key == "vllm")
    assert peer.python({"QWENKIT_PEER_VLLM_PYTHON": "/there/python"}) == "/there/python"
    with pytest.raises(UnsupportedError, match=r"vLLM is not installed here\. Set QWENKIT_PEER_VLLM_PYTHON"):
        replace(peer, module="nobodys_module").python({})
    assert replace(peer, module="json").python({}) == sys.executable


def test_bf16_only_is_said(tiny_chat: Path, cache: Path) -> None:
    peer = next(peer for peer in catalog.PEERS if peer.key == "transformers")
    with pytest.raises(UnsupportedError, match="transformers is measured with bf16 weights only, not int4"):
        peer.model(source(tiny_chat), "int4", sys.executable)


def test_a_folder_is_not_a_gguf(tiny_chat: Path, cache: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"Qwen-7B-Chat is no \.gguf file"):
        source(tiny_chat).gguf("Q4_0")


def test_a_checkpoint_is_rewritten_once_and_runs_in_transformers(tiny_chat: Path, cache: Path) -> None:
    found = source(tiny_chat)
    folder = found.folder()
    written = (folder / "config.json").stat().st_mtime_ns
    assert found.folder() == folder
    assert (folder / "config.json").stat().st_mtime_ns == written
    assert folder.parent == cache / "bench"
    # 2 layers of [96, 32], [32, 32], 3 x [48, 32] with a bias of 96 and two norms, a norm, the output layer
    layer = 96 * 32 + 96 + 32 * 32 + 3 * 48 * 32 + 2 * 32
    assert found.read_bytes(folder) == 2 * (2 * layer + 32 + 151936 * 32)
    engine = adapter("transformers").Engine({"model": str(folder), "threads": 1})
    told = engine.run(Point("plain", 20, 5, 2).prompts(1000), 5)
    assert told["tokens"] == [5, 5]
    assert 0 < told["first_s"][0] < told["total_s"]


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4.5), ("Q8_0", 8.5), ("BF16", 16)])
@pytest.mark.parametrize("tied", [False, True])
def test_random_gguf_files_hold_finite_weights_of_the_shape(
    tmp_path: Path, kind: str, bits: float, tied: bool
) -> None:
    path = tmp_path / "x.gguf"
    write_random_gguf(path, replace(TINY, tied_embeddings=tied), kind)
    opened = GGUFFile(path)
    entries = opened.entries()
    assert sum(e.nbytes for e in entries.values() if e.name.startswith("blk") and len(e.shape) == 2) == (
        MATRICES * bits / 8
    )
    for name, shape in (("blk.1.attn_k.weight", (128, 256)), ("blk.0.ffn_down.weight", (256, 512))):
        weight = opened.read(name).float()
        assert weight.shape == shape
        assert torch.isfinite(weight).all()
        assert 1e-3 < weight.std() < 0.1
    assert ("output.weight" in entries) is not tied
    head = {"Q4_0": 6.5625, "Q8_0": 8.5, "BF16": 16}[kind] if not tied else bits
    small = 4 * (2 * (2 * 256 + 256 + 2 * 128) + 256)
    assert Source.read_bytes(None, path) == MATRICES * bits / 8 + 512 * 256 * head / 8 + small  # type: ignore[arg-type]


def test_random_gptq_weights_are_a_checkpoint(tmp_path: Path) -> None:
    found = Source.__new__(Source)
    found.config, found._checkpoint = TINY, None
    found._write_gptq(tmp_path / "gptq")
    model = open_checkpoint(tmp_path / "gptq").load_model(dtype=torch.bfloat16)
    packed = [module for module in model.modules() if isinstance(module, AffineLinear)]
    assert len(packed) == 2 * 5
    assert {(m.bits, int(m.zeros.float().mean())) for m in packed} == {(4, 8)}
    with torch.inference_mode():
        assert torch.isfinite(model(torch.arange(10)[None], Batch.make(1, 10))).all()


def test_random_blocks_repeat_exactly(tmp_path: Path) -> None:
    for number in (1, 2):
        write_random_gguf(tmp_path / f"{number}.gguf", TINY, "Q4_0")
    assert np.array_equal(*(np.fromfile(tmp_path / f"{n}.gguf", dtype=np.uint8) for n in (1, 2)))


def test_the_command_runs_peers_and_names_those_it_cannot(
    tiny_chat: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = catalog.Peer("rival", "Rival", "json", str(good(tmp_path)), "folder", ("bf16",), {})
    nobody = catalog.Peer("nobody", "Nobody", "no_such_module", "x.py", "folder", ("bf16",), {})
    monkeypatch.setattr(catalog, "PEERS", (rival, nobody))
    found = tmp_path / "found.json"
    ended = CliRunner().invoke(
        app, ["bench", str(tiny_chat), "--peers", "--prompt", "8", "--decode", "3", "--repeats", "1",
              "--json", str(found)],
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    summary = json.loads(found.read_text())
    assert [engine["name"] for engine in summary["engines"]] == ["qwenkit", "Rival"]
    assert summary["engines"][1]["points"][0]["prefill_tok_s"]["median"] == pytest.approx(100)
    assert summary["absent"] == {
        "Nobody": "Nobody is not installed here. Set QWENKIT_PEER_NOBODY_PYTHON to a python that has "
        "no_such_module."
    }
    assert "Nobody is not installed here." in ended.stdout
    assert "qwenkit is" in ended.stdout


@pytest.mark.peer
@pytest.mark.parametrize("peer", catalog.PEERS, ids=lambda peer: peer.key)
def test_every_installed_peer_runs(peer: catalog.Peer, cache: Path) -> None:
    """With the variables of docs/bench.md set, on a random model of the smallest published shape."""
    from qwenkit.bench.peers.process import EngineProcess

    weights = "int4" if "int4" in peer.weights else "bf16"
    able, reasons = catalog.contenders(
        [peer], Source(None, "qwen2.5-0.5b", offline=True, say=print),
        {"weights": weights, "kv_cache": None, "threads": 2, "context": 64, "sequences": 3,
         "cache_tokens": 192}, os.environ,
    )  # fmt: skip
    if not able:
        pytest.skip(reasons[peer.name])
    (one,) = able
    with EngineProcess(one.name, one.python, one.adapter, one.variables) as process:
        facts = process.call("load", timeout_s=600, job=dict(one.job)) | dict(one.facts)
        assert 0.2e9 < facts["weight_bytes"] < 1.1e9
        for point in (Point("plain", 40, 8), Point("concurrency", 20, 5, 3)):
            told = process.call("run", timeout_s=300, prompts=point.prompts(1000), new=point.new)
            assert told["tokens"] == [point.new] * point.sequences
            assert 0 < min(told["first_s"]) <= max(told["first_s"]) < told["total_s"]
