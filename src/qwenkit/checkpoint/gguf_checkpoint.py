"""A GGUF file as a checkpoint: its metadata as a configuration, its dequantized tensors kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qwenkit.checkpoint.checkpoint_base import Checkpoint
from qwenkit.checkpoint.generation_config import (
    IM_END,
    guest_generation,
    is_qwen2_chat,
    qwen2_generation,
    v1_generation,
)
from qwenkit.checkpoint.gguf_file import open_gguf
from qwenkit.checkpoint.gguf_header import GGUFHeader, plain_dtype
from qwenkit.checkpoint.llama_tensors import LlamaTensors
from qwenkit.checkpoint.loading import Loader
from qwenkit.checkpoint.names import stored_modules
from qwenkit.checkpoint.rewriting import planned_tensors
from qwenkit.checkpoint.safetensors_file import SafetensorsFile
from qwenkit.checkpoint.safetensors_writer import write_safetensors
from qwenkit.checkpoint.store import DerivedStore
from qwenkit.checkpoint.tensor_source import TensorEntry
from qwenkit.core import CheckpointError, ConfigError, GenerationConfig, UnsupportedError
from qwenkit.model import SIZES, ModelConfig
from qwenkit.model.config import V1_VALUES

if TYPE_CHECKING:
    from qwenkit.text import Tokenizer

_ARCHITECTURES = ("qwen", "qwen2", "llama")
OWN_KEYS = "qwenkit"
"""Prefix of the metadata that only qwenkit reads: JSON objects called V1_VALUES and GENERATION."""
GENERATION = "generation_config"

_DERIVED_VERSION = 1  # raise it when what is derived from the same file changes

_FILE_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    21: "Q2_K_S", 32: "BF16",
}  # fmt: skip


class GGUFCheckpoint(Checkpoint):
    """Architectures qwen and qwen2, and as a guest llama: the same block without biases (LlamaTensors)."""

    def __init__(self, path: Path, content_hash: str | None) -> None:
        self.path = path
        self.layout = "gguf"
        self._content_hash = content_hash
        self._header, self._source = open_gguf(path)
        self.config = gguf_config(self._header, self._source.entries(), path)
        if self._header.text("general.architecture") == "llama":
            self._source = LlamaTensors(self._source, self.config)
        self.dtype = self._main_dtype()
        self.quantization = f"GGUF {self._file_type()}"
        self.generation = self._generation()

    def _file_type(self) -> str:
        """The name of the mix, else the type that holds the most bytes."""
        named = _FILE_TYPES.get(self._header.integer("general.file_type", -1))
        if named is not None:
            return named
        held: dict[str, int] = {}
        for entry in self._source.entries().values():
            held[entry.dtype] = held.get(entry.dtype, 0) + entry.nbytes
        return max(held, key=lambda kind: held[kind])

    def _main_dtype(self) -> torch.dtype:
        """Of the embedding if that is plain floats; block formats count as bfloat16, as trained."""
        return plain_dtype(self._source.entry("token_embd.weight").dtype) or torch.bfloat16

    def _generation(self) -> GenerationConfig:
        """What qwenkit wrote into the file; others carry no such values, and the published ones apply.

        A qwen2 file is a chat model if it ends at <|im_end|>; a v1 file does not say and is taken for one.
        A guest numbers its tokens in its own way and has no published values: it is greedy.
        """
        header, vocab_size = self._header, self.config.vocab_size
        template = self.chat_template
        written = own_values(header, GENERATION, self.path)
        if header.text("general.architecture") == "llama":
            end = header.integer("tokenizer.ggml.eos_token_id")
            return guest_generation(header.strings("tokenizer.ggml.tokens"), end, template, self.path)
        if self.config.architecture == "qwen":
            return v1_generation(written, vocab_size, self.path, template)
        chat = header.integer("tokenizer.ggml.eos_token_id", -1) == IM_END
        return qwen2_generation(
            written,
            chat=chat if written is None else is_qwen2_chat(written, None),
            template=template,
            vocab_size=vocab_size,
            file=self.path,
        )

    @property
    def chat_template(self) -> str | None:
        return self._header.text("tokenizer.chat_template") or None

    @property
    def dequantized(self) -> bool:
        return any(plain_dtype(entry.dtype) is None for entry in self.entries())

    @property
    def has_tokenizer(self) -> bool:
        return self._header.text("tokenizer.ggml.model", "no_vocab") != "no_vocab"

    def tokenizer(self) -> Tokenizer:
        from qwenkit.text import Tokenizer

        model = self._header.text("tokenizer.ggml.model")
        if model != "gpt2":
            raise UnsupportedError(
                f"{self.path}: a tokenizer of kind {model!r}.",
                "qwenkit reads byte-level BPE ('gpt2') tokenizers.",
            )
        tokens = self._header.strings("tokenizer.ggml.tokens")
        types = self._header.get("tokenizer.ggml.token_type")
        if not isinstance(types, list) or len(types) != len(tokens):
            raise CheckpointError(f"{self.path}: token types do not match its tokens.", "Download it again.")
        pre = self._header.text("tokenizer.ggml.pre", "qwen2")
        merges = partial(self._header.strings, "tokenizer.ggml.merges")
        if self._content_hash is None:
            return Tokenizer.from_gguf(tokens, types, merges(), pre)

        def prove(place: Path) -> None:
            Tokenizer.from_gguf(tokens, types, merges(), pre)
            place.write_text("The merges of this file agree with the order of its token ids.\n")

        DerivedStore().get_or_make(f"gguf-{self._content_hash}-merges-v1.txt", prove)
        return Tokenizer.from_gguf(tokens, types, None, pre)

    def _identity(self) -> str:
        return self._content_hash or super()._identity()

    @cached_property
    def loader(self) -> Loader:
        modules = stored_modules(
            "gguf",
            self.config.num_layers,
            fused_qkv="blk.0.attn_qkv.weight" in self._source.entries(),
        )
        return Loader(self.config, self._source, modules)

    def _loader_for(self, dtype: torch.dtype) -> Loader:
        """From the cache where the content of the file is known, else straight from the file."""
        if self._content_hash is None:
            return self.loader
        words = str(dtype).removeprefix("torch.")
        key = f"gguf-{self._content_hash}-{words}-v{_DERIVED_VERSION}.safetensors"

        def make(place: Path) -> None:
            self.loader.check()
            write_safetensors(place, planned_tensors(self.loader, dtype), {"format": "pt"})

        kept = SafetensorsFile(DerivedStore().get_or_make(key, make))
        return Loader(self.config, kept, stored_modules("qwen-v1", self.config.num_layers))


def own_values(header: GGUFHeader, name: str, path: Path) -> dict[str, Any] | None:
    """The JSON object that qwenkit keeps in a GGUF file under `name`; None in the files of others."""
    text = header.text(f"{OWN_KEYS}.{name}")
    if not text:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: metadata {OWN_KEYS}.{name} is no JSON ({error}).", "Convert it again."
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: metadata {OWN_KEYS}.{name} is no object.", "Convert it again.")
    return values


def gguf_config(header: GGUFHeader, entries: Mapping[str, TensorEntry], path: Path) -> ModelConfig:
    """The model's shape from GGUF metadata, the vocabulary and FFN width from the tensors themselves.

    GGUF knows neither dynamic NTK nor LogN. A file that qwenkit wrote has them in a value of its own; else
    for architecture "qwen" they are taken from the published model with the same layers and width, and for
    other shapes they are off and the context length is the trained one. Raises CheckpointError for missing
    metadata, UnsupportedError for other architectures.
    """
    arch = header.text("general.architecture")
    if arch not in _ARCHITECTURES:
        raise UnsupportedError(
            f"{path}: architecture {arch!r}.", f"qwenkit reads GGUF files of {', '.join(_ARCHITECTURES)}."
        )
    scaling = header.text(f"{arch}.rope.scaling.type", "none")
    if scaling != "none":
        raise UnsupportedError(f"{path}: rope scaling {scaling!r}.", "Use the file without rope scaling.")
    for needed in ("token_embd.weight", "blk.0.ffn_up.weight"):
        if needed not in entries:
            raise CheckpointError(f"{path} has no tensor {needed!r}.", "Download it again.")
    heads = header.integer(f"{arch}.attention.head_count")
    hidden = header.integer(f"{arch}.embedding_length")
    layers = header.integer(f"{arch}.block_count")
    context = header.integer(f"{arch}.context_length")
    head_dim = header.integer(f"{arch}.attention.key_length", hidden // heads if heads > 0 else 0)
    rotary_dim = header.integer(f"{arch}.rope.dimension_count", head_dim)
    if arch == "llama" and rotary_dim != head_dim:
        raise UnsupportedError(
            f"{path}: {rotary_dim} of {head_dim} channels of a head are rotated.", "Of a llama all must be."
        )
    published = next(
        (
            size
            for size in SIZES.values()
            if arch == "qwen" == size.architecture
            and (size.hidden_size, size.num_layers, size.num_heads) == (hidden, layers, heads)
        ),
        None,
    )
    values = own_values(header, V1_VALUES, path)
    try:
        shape = ModelConfig(
            architecture="qwen" if arch == "qwen" else "qwen2",
            vocab_size=entries["token_embd.weight"].shape[0],
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=header.integer(f"{arch}.attention.head_count_kv", heads),
            head_dim=head_dim,
            ffn_size=entries["blk.0.ffn_up.weight"].shape[0],
            rotary_dim=rotary_dim,
            rope_base=float(header.get(f"{arch}.rope.freq_base", 10000.0)),
            # Metadata is float32: seven digits give back the number that was meant.
            norm_eps=float(f"{header.get(f'{arch}.attention.layer_norm_rms_epsilon', 1e-6):.7g}"),
            seq_length=published.seq_length if published else context,
            max_positions=context,
            dynamic_ntk=published.dynamic_ntk if published else False,
            logn=published.logn if published else False,
            tied_embeddings="output.weight" not in entries,
        )
        return shape if values is None else shape.with_v1_values(values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.problem}", error.remedy) from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: a metadata value has the wrong type ({error}).", "Download it again."
        ) from error
