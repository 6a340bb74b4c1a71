"""Model files for other engines, in the formats they read: random ones of a shape, or a checkpoint rewritten.

Kept in the cache folder under `bench/`: making them takes minutes. Each appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwenkit.bench.peers.random_gguf import write_random_gguf
from qwenkit.bench.shapes import GROUP, random_floats
from qwenkit.checkpoint import Checkpoint, PlannedTensor, locate, open_checkpoint, write_checkpoint
from qwenkit.checkpoint.empty_model import empty_model
from qwenkit.checkpoint.gguf_header import GGUFHeader
from qwenkit.checkpoint.safetensors_writer import write_safetensors
from qwenkit.checkpoint.store import cache_root, remove, require_space
from qwenkit.core import UnsupportedError
from qwenkit.model import ModelConfig


class Source:
    """What is measured, as other engines can get it: a shape of SIZES, or a checkpoint.

    Every method returns the path of a file or folder, made on the first call; say: progress, in words.
    """

    def __init__(
        self, model: str | None, shape: str | None, *, offline: bool, say: Callable[[str], None]
    ) -> None:
        self.shape = shape
        self._say = say
        self._checkpoint: Checkpoint | None = None
        if shape is not None:
            self.config, self.key, self.quantized = ModelConfig.from_name(shape), shape, False
            return
        found = locate(model, offline=offline)
        self._checkpoint = open_checkpoint(found.path, content_hash=found.content_hash)
        self.config = self._checkpoint.config
        self.quantized = not self._checkpoint.quantization.startswith("none")
        self.key = f"{found.path.stem}-{_fingerprint(found.path)}"

    def folder(self) -> Path:
        """bfloat16 weights in the Qwen2 layout, which transformers, vLLM and OpenVINO's converter read.

        NTK and LogN, which that layout cannot express, act beyond the training length only.
        """
        return self._made("bf16", self._write_folder, 2 * self.config.parameter_count)

    def gptq(self) -> Path:
        """Random GPTQ int4 weights, groups of 128, in the Qwen2 layout; bfloat16 output layer."""
        if self._checkpoint is not None:
            raise UnsupportedError("GPTQ weights for another engine are made of a --shape only.")
        return self._made("gptq", self._write_gptq, self.config.parameter_count)

    def gguf(self, kind: str) -> Path:
        """A GGUF file: the checkpoint itself, or random weights in Q4_0 (int4), Q8_0 (int8) or BF16."""
        if self._checkpoint is None:
            write = partial(write_random_gguf, config=_plain(self.config), kind=kind)
            return self._made(f"{kind}.gguf", write, 2 * self.config.parameter_count)
        if self._checkpoint.layout != "gguf":
            raise UnsupportedError(
                f"{self._checkpoint.path} is no .gguf file, and that is what this engine reads."
            )
        return self._checkpoint.path

    def read_bytes(self, path: Path) -> int:
        """Bytes of weights a token reads: all in the file or folder but an embedding of its own."""
        entries = dict(_stored(path))
        embedding = next(
            name for name in entries if name in ("token_embd.weight", "model.embed_tokens.weight")
        )
        tied = not any(name in entries for name in ("output.weight", "lm_head.weight"))
        return sum(entries.values()) - (0 if tied else entries[embedding])

    def converted(self, kind: str, convert: Callable[[Path], None]) -> Path:
        """What an engine made itself: `convert` gets the path to write to."""
        return self._made(kind, convert, self.config.parameter_count)

    def _made(self, kind: str, write: Callable[[Path], None], nbytes: int) -> Path:
        place = cache_root() / "bench" / f"{self.key}-{kind}"
        if place.exists():
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        require_space(place.parent, nbytes, f"The {kind} form of {self.key}")
        self._say(f"Making {place} (once) ...")
        fresh = place.with_name(f".{secrets.token_hex(4)}-{place.name}")
        try:
            write(fresh)
            os.replace(fresh, place)
        finally:
            remove(fresh)
        return place

    def _write_folder(self, place: Path) -> None:
        config = _plain(self.config)
        tokenizer = generation = None
        if self._checkpoint is None:
            tensors = [
                PlannedTensor(name, tuple(p.shape), torch.bfloat16, partial(_random, name, tuple(p.shape)))
                for name, p in empty_model(config).named_parameters()
            ]
        else:
            tensors = list(self._checkpoint.planned(torch.bfloat16))
            tokenizer, generation = self._checkpoint.tokenizer(), self._checkpoint.generation
        write_checkpoint(
            tensors, config, tokenizer, place, layout="qwen2", dtype=torch.bfloat16, generation=generation
        )

    def _write_gptq(self, place: Path) -> None:
        config = _plain(self.config)
        place.mkdir()
        write_safetensors(place / "model.safetensors", list(_gptq_tensors(config)), {"format": "pt"})
        quantization = {
            "quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True,
        }  # fmt: skip
        described: dict[str, Any] = config.to_qwen2_dict() | {"quantization_config": quantization}
        described["torch_dtype"] = "bfloat16"
        (place / "config.json").write_text(json.dumps(described, indent=2))


def _stored(path: Path) -> Iterator[tuple[str, int]]:
    """Name and bytes of every tensor."""
    if path.is_file():
        yield from ((tensor.name, tensor.nbytes) for tensor in GGUFHeader(path).tensors)
        return
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield name, end - start


def _plain(config: ModelConfig) -> ModelConfig:
    return replace(config, architecture="qwen2", dynamic_ntk=False, logn=False)


def _fingerprint(path: Path) -> str:
    """Changes when the file does, or the newest file of a folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) or [path]
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


def _random(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    # Numbers of its own: a converter keeps equal tensors once, and its engine would then read them once.
    return random_floats(shape, seed=zlib.crc32(name.encode()))


def _gptq_tensors(config: ModelConfig) -> Iterator[PlannedTensor]:
    """Every tensor under its Qwen2 name; layers of one shape share their numbers."""
    h, d = config.hidden_size, config.head_dim
    floats = {"model.embed_tokens.weight": (config.vocab_size, h), "model.norm.weight": (h,)}
    if not config.tied_embeddings:
        floats["lm_head.weight"] = (config.vocab_size, h)
    heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    for layer in range(config.num_layers):
        block = f"model.layers.{layer}"
        floats |= {f"{block}.{norm}_layernorm.weight": (h,) for norm in ("input", "post_attention")}
        floats |= {f"{block}.self_attn.{part}_proj.bias": (count * d,) for part, count in heads.items()}
        matrices = {f"self_attn.{part}_proj": (count * d, h) for part, count in heads.items()}
        matrices |= {
            "self_attn.o_proj": (h, config.num_heads * d), "mlp.up_proj": (config.ffn_size, h),
            "mlp.gate_proj": (config.ffn_size, h), "mlp.down_proj": (h, config.ffn_size),
        }  # fmt: skip
        for stem, (rows, columns) in matrices.items():
            yield from _gptq_layer(f"{block}.{stem}", rows, columns)
    for name, shape in floats.items():
        yield PlannedTensor(name, shape, torch.bfloat16, partial(_random, name, shape))


def _gptq_layer(stem: str, rows: int, columns: int) -> Iterator[PlannedTensor]:
    """qweight, qzeros, scales and g_idx as published checkpoints have them (reference: model section 10)."""
    words, groups = (columns // 8, rows), columns // GROUP
    zeros, scales = (groups, rows // 8), (groups, rows)
    yield PlannedTensor(f"{stem}.qweight", words, torch.int32, partial(_words, words))
    filled = partial(torch.full, zeros, 0x77777777, dtype=torch.int32)
    yield PlannedTensor(f"{stem}.qzeros", zeros, torch.int32, filled)
    steps = partial(torch.full, scales, 0.005, dtype=torch.float16)
    yield PlannedTensor(f"{stem}.scales", scales, torch.float16, steps)
    order = partial(torch.arange, columns, dtype=torch.int32)
    yield PlannedTensor(f"{stem}.g_idx", (columns,), torch.int32, lambda: order() // GROUP)


def _words(shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    block = torch.randint(-(2**31), 2**31, (1 << 20,), generator=generator).int()
    count = shape[0] * shape[1]
    return block.repeat(-(-count // block.numel()))[:count].view(shape)
