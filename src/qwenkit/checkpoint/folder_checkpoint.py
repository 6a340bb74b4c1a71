"""A folder with config.json and weights: the v1 and the Qwen2 layout, in floats or GPTQ."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qwenkit.checkpoint.checkpoint_base import FLOAT_DTYPES, Checkpoint
from qwenkit.checkpoint.generation_config import is_qwen2_chat, qwen2_generation, v1_generation
from qwenkit.checkpoint.gptq_config import GPTQConfig, read_gptq_config
from qwenkit.checkpoint.json_file import read_json, read_json_if_any
from qwenkit.checkpoint.loading import Loader
from qwenkit.checkpoint.names import stored_modules
from qwenkit.checkpoint.safetensors_file import DTYPES
from qwenkit.checkpoint.shards import open_folder
from qwenkit.checkpoint.tensor_source import TensorEntry
from qwenkit.checkpoint.verify import check_file
from qwenkit.core import CheckpointError, ConfigError, GenerationConfig, QwenkitError, UnsupportedError
from qwenkit.model import ModelConfig

if TYPE_CHECKING:
    from qwenkit.text import Tokenizer

_REPORT = "quantize_report.json"  # what `qwenkit quantize` found when it measured the folder
_VOCABULARIES = ("qwen.tiktoken", "tokenizer.json", "vocab.json")


class FolderCheckpoint(Checkpoint):
    """A folder with config.json: the v1 or the Qwen2 layout, float or GPTQ."""

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = read_json(path / "config.json")
        self.config = _model_config(raw, path / "config.json")
        self.layout = "qwen-v1" if self.config.architecture == "qwen" else "qwen2"
        self._gptq: GPTQConfig | None = read_gptq_config(path, raw)
        self._source = open_folder(path)
        self.dtype = _float_dtype(self._source.entries())
        words = str(self.dtype).removeprefix("torch.")
        self.quantization = f"none ({words})"
        if self._gptq is not None:
            shapes = {name: entry.shape for name, entry in self._source.entries().items()}
            self.quantization = self._gptq.described(shapes)
        self.generation = self._generation()

    def _generation(self) -> GenerationConfig:
        file = self.path / "generation_config.json"
        raw = read_json_if_any(file)
        about = read_json_if_any(self.path / "tokenizer_config.json")
        if self.layout == "qwen-v1":
            return v1_generation(raw, self.config.vocab_size, file, self.chat_template)
        return qwen2_generation(
            raw,
            chat=is_qwen2_chat(raw, about),
            template=self.chat_template,
            vocab_size=self.config.vocab_size,
            file=file,
        )

    @cached_property
    def chat_template(self) -> str | None:
        """chat_template of tokenizer_config.json, or the file chat_template.jinja that newer tools write."""
        about = read_json_if_any(self.path / "tokenizer_config.json")
        beside = self.path / "chat_template.jinja"
        if beside.exists():
            check_file(beside)
            return beside.read_text(encoding="utf-8", errors="replace")
        template = (about or {}).get("chat_template")
        if isinstance(template, list):  # several named templates; the one called default is for chat
            named = {t.get("name"): t.get("template") for t in template if isinstance(t, Mapping)}
            template = named.get("default")
        return template if isinstance(template, str) else None

    @cached_property
    def warning(self) -> str | None:
        try:
            report = read_json_if_any(self.path / _REPORT)
        except CheckpointError:  # a note beside the weights, which are none the worse for its damage
            return None
        if report is None or report.get("state") != "failed":
            return None
        found, allowed = (_percent(report.get(key)) for key in ("increase", "max_increase"))
        return (
            f"{self.path} failed its own measurement: quantizing changed the perplexity by {found}, and "
            f"{allowed} was allowed ({_REPORT}). Try --group-size 32, --act-order or --bits 8."
        )

    @property
    def has_tokenizer(self) -> bool:
        return any((self.path / name).exists() for name in _VOCABULARIES)

    def tokenizer(self) -> Tokenizer:
        from qwenkit.text import Tokenizer

        for name in (*_VOCABULARIES, "merges.txt", "tokenizer_config.json"):
            if (self.path / name).exists():
                check_file(self.path / name)
        return Tokenizer.from_folder(self.path)

    @cached_property
    def loader(self) -> Loader:
        modules = stored_modules(self.layout, self.config.num_layers)
        return Loader(self.config, self._source, modules, self._gptq)


def _percent(value: object) -> str:
    return f"{value:+.3g} %" if isinstance(value, int | float) else "an unknown part"


def _model_config(raw: Mapping[str, Any], file: Path) -> ModelConfig:
    try:
        return ModelConfig.from_dict(raw)
    except (ConfigError, UnsupportedError) as error:
        kind: type[QwenkitError] = type(error)
        raise kind(f"{file}: {error.problem}", error.remedy) from error
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: a value has the wrong type ({error}).", "Download it again."
        ) from error


def _float_dtype(entries: Mapping[str, TensorEntry]) -> torch.dtype:
    """The float dtype that holds the most bytes; scales of quantized weights do not count."""
    held: dict[torch.dtype, int] = {}
    for name, entry in entries.items():
        dtype = DTYPES.get(entry.dtype)
        if dtype in FLOAT_DTYPES and dtype is not None and not name.endswith(".scales"):
            held[dtype] = held.get(dtype, 0) + entry.nbytes
    return max(held, key=lambda dtype: held[dtype], default=torch.float32)
