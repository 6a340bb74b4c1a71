"""Sources to convert, and what is looked at on the other side."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import DATA, small_model

from qwenkit.checkpoint import Conversion, open_checkpoint, plan_conversion, write_checkpoint
from qwenkit.core import GenerationConfig, SamplingParams
from qwenkit.text import Tokenizer

SPECIALS = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
GENERATION = GenerationConfig(
    sampling=SamplingParams(
        temperature=0.5, top_p=0.75, top_k=9, min_p=0.0, repetition_penalty=1.25, max_tokens=77
    ),
    stop_token_ids=(258, 256), max_window_size=99, default_system="Be brief.",
)  # fmt: skip


def convert(source: Path, to: str, out: Path, **options) -> Conversion:
    conversion = plan_conversion(open_checkpoint(source), to, **options)
    conversion.write(out)
    return conversion


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder, by the safetensors library."""
    held: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        held |= load_file(file)
    return held


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


def copied(name: str, path: Path) -> Path:
    """A golden checkpoint of tests/data, to be changed."""
    shutil.copytree(DATA / name, path, ignore=shutil.ignore_patterns("golden.*"))
    return path


def small_tokenizer() -> Tokenizer:
    """All bytes, two tokens that merges make, and the control tokens; one of the specials is visible."""
    ranks = {bytes([b]): b for b in range(256)} | {b"he": 260, b"hel": 261}
    return Tokenizer(ranks, special_tokens=SPECIALS | {"<tool>": 259}, visible=["<tool>"])


def chat_folder(
    path: Path,
    layout: str = "qwen-v1",
    dtype: torch.dtype = torch.float32,
    generation: GenerationConfig = GENERATION,
    **other,
) -> Path:
    """A small random chat model with `small_tokenizer`."""
    shape = {"architecture": "qwen", "num_kv_heads": 4} if layout == "qwen-v1" else {}
    model = small_model(**{"vocab_size": 300, **shape, **other})
    write_checkpoint(
        model, model.shape, small_tokenizer(), path, layout=layout, dtype=dtype, generation=generation
    )
    return path


def act_order(folder: Path) -> None:
    """Give every GPTQ layer its own shuffled order of inputs."""
    tensors = stored(folder)
    generator = torch.Generator().manual_seed(0)
    for name, value in tensors.items():
        if name.endswith(".g_idx"):
            tensors[name] = value[torch.randperm(len(value), generator=generator)].contiguous()
    save_file(tensors, folder / "model.safetensors")
