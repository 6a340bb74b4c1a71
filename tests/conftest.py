"""Shared data and the rule that a skipped tier says so."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import chromium
from real_data import debian_reference_text, smollm2_file

# A busy machine is no bug: no test may fail for being slow.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell that starts the tests in the background makes them, and what they interrupt, deaf to interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real qwen.tiktoken, unpacked."""
    path = tmp_path_factory.mktemp("vocabulary") / "qwen.tiktoken"
    with lzma.open(DATA / "qwen.tiktoken.xz") as packed, path.open("wb") as out:
        shutil.copyfileobj(packed, out)
    return path


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real model as a GGUF file, trained on 8192 tokens; for the model tier."""
    return smollm2_file(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="session")
def debian_reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A long English text, for the model tier."""
    return debian_reference_text(tmp_path_factory.mktemp("debian-reference"))


@pytest.fixture(scope="session")
def tiny_chat(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v1 chat checkpoint of the smallest shape, random weights and the real vocabulary (20 MB)."""
    import torch
    from safetensors.torch import save_file

    from qwenkit.model import CausalLM, ModelConfig

    config = ModelConfig(
        vocab_size=151936, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16,
        ffn_size=48, rotary_dim=16, seq_length=2048, max_positions=8192, dynamic_ntk=True, logn=True,
        initializer_range=1.0,  # a trained model is as sure of its next token; flat logits sample slowly
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "Qwen-7B-Chat"
    folder.mkdir()
    weights = CausalLM(config).initialize(seed=1).to(torch.bfloat16).state_dict()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_v1_dict()))
    generation = {"chat_format": "chatml", "eos_token_id": 151643, "pad_token_id": 151643, "do_sample": True,
                  "top_k": 0, "top_p": 0.8, "max_window_size": 6144, "max_new_tokens": 24}  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "QWenTokenizer"}))
    shutil.copy(vocabulary, folder / "qwen.tiktoken")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep nothing in the user's cache; only the tier with the demo model reads it there."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("QWENKIT_TEST_MODEL"):
            patch.setenv("QWENKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def reference_kernels() -> Iterator[None]:
    """Run the reference operators: truncated codes follow every rounding, also that of a faster norm."""
    from qwenkit.kernels import native

    if native.built():
        native.set_isa("reference")
    yield
    if native.built():
        native.set_isa(None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    closed = {
        "model": None
        if os.environ.get("QWENKIT_TEST_MODEL")
        else "set QWENKIT_TEST_MODEL=1 to run on real weights",
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "peer": None
        if os.environ.get("QWENKIT_TEST_PEER")
        else "set QWENKIT_TEST_PEER=1 to compare with other engines",
        "browser": chromium.missing(),
    }
    for item in items:
        for tier, reason in closed.items():
            if reason and item.get_closest_marker(tier):
                item.add_marker(pytest.mark.skip(reason=f"{tier} tier: {reason}"))
