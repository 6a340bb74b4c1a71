"""Checkpoint folders as their owners have them, with the remote code files of 2023 lying in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import qwenkit.hf  # noqa: F401  (registers with transformers)

DATA = Path(__file__).parents[1] / "data"
TINY = DATA / "tiny_v1"

CONFIG = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "model_type": "qwen",
    "hidden_size": 32,
    "intermediate_size": 96,
    "kv_channels": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "seq_length": 64,
    "max_position_embeddings": 256,
    "layer_norm_epsilon": 1e-6,
    "initializer_range": 0.3,
    "bf16": False,
    "fp16": False,
    "fp32": False,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "vocab_size": 151936,
}
GENERATION = {
    "chat_format": "chatml",
    "eos_token_id": 151643,
    "pad_token_id": 151643,
    "max_window_size": 6144,
    "max_new_tokens": 512,
    "do_sample": True,
    "top_k": 0,
    "top_p": 0.8,
    "repetition_penalty": 1.1,
}
TOKENIZER = {
    "model_max_length": 8192,
    "tokenizer_class": "QWenTokenizer",
    "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
}


def add_remote_code(folder: Path) -> Path:
    """Files that leave a marker when anything in them runs. Returns the marker's path."""
    marker = folder / "remote code ran"
    body = f"open({str(marker)!r}, 'w').close()\nraise RuntimeError('remote code ran')\n"
    for name in ("configuration_qwen.py", "modeling_qwen.py", "tokenization_qwen.py"):
        (folder / name).write_text(body)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(body)
    return marker


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    return load_file(TINY / "golden.safetensors")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """The golden weights with the real vocabulary."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, folder)
    shutil.copy(vocabulary, folder / "qwen.tiktoken")
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    add_remote_code(folder)
    return folder


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """Random weights wide enough for the real vocabulary, and the settings of a Chat model."""
    from qwenkit.model import CausalLM, ModelConfig

    folder = tmp_path_factory.mktemp("chat")
    model = CausalLM(ModelConfig.from_dict(CONFIG)).initialize(seed=5)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))
    shutil.copy(vocabulary, folder / "qwen.tiktoken")
    add_remote_code(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="module")
def chat_model(chat_folder: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(chat_folder).eval()


@pytest.fixture(scope="session")
def tokenizer(chat_folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(chat_folder)


@pytest.fixture(scope="session")
def close():
    """assert_close at the tolerance of the golden values."""

    def check(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> None:
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)

    return check


@pytest.fixture
def new_folder(tmp_path: Path):
    """Copies a folder, changing its config.json; returns the copy and its remote code's marker."""

    def make(source: Path, **config: object) -> tuple[Path, Path]:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        for file in source.iterdir():
            if file.suffix in {".json", ".safetensors", ".tiktoken"}:
                shutil.copy(file, folder)
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**raw, **config}))
        return folder, add_remote_code(folder)

    return make
