"""What every opened checkpoint offers, whatever its layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qwenkit.checkpoint.gptq_config import GPTQConfig
from qwenkit.checkpoint.loading import Loader
from qwenkit.checkpoint.names import Layout
from qwenkit.checkpoint.packed_model import LoadedModel, identity_of, load_kept, pack_while_loading
from qwenkit.checkpoint.rewriting import planned_tensors
from qwenkit.checkpoint.safetensors_writer import PlannedTensor
from qwenkit.checkpoint.stamps import content_hash
from qwenkit.checkpoint.tensor_source import TensorEntry, TensorSource
from qwenkit.core import GenerationConfig, UnsupportedError
from qwenkit.model import CausalLM, ModelConfig
from qwenkit.quant import Packing
from qwenkit.quant.packing import why_not_native

if TYPE_CHECKING:
    from qwenkit.text import Tokenizer

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Checkpoint(ABC):
    """Made by `open_checkpoint`.

    path: the folder or .gguf file; layout: "qwen-v1", "qwen2" or "gguf"; config: the model's shape;
    generation: defaults for sampling and stopping; is_chat: trained to hold a conversation;
    quantization: how weights are stored, in words; dtype: of the stored float weights. notes: what was done
    to the values since they were stored, one sentence each.
    """

    path: Path
    layout: Layout
    config: ModelConfig
    generation: GenerationConfig
    quantization: str
    dtype: torch.dtype
    notes: Sequence[str] = ()
    _source: TensorSource

    @property
    def is_chat(self) -> bool:
        return self.generation.chat_format == "chatml"

    @property
    def warning(self) -> str | None:
        """What whoever loads this should know before trusting it, None where nothing is known."""
        return None

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that belongs to the weights. Raises CheckpointError or TokenizerError."""

    @property
    @abstractmethod
    def chat_template(self) -> str | None:
        """The Jinja chat template stored with the tokenizer, None where there is none."""

    @property
    @abstractmethod
    def has_tokenizer(self) -> bool:
        """Whether any tokenizer is stored with the weights."""

    @property
    def gptq(self) -> GPTQConfig | None:
        """How linear layers were quantized by GPTQ, None where they were not."""
        return self.loader.gptq

    @property
    @abstractmethod
    def loader(self) -> Loader:
        """Reads the checkpoint's own files."""

    @property
    def dequantized(self) -> bool:
        """Whether weights that come as floats are stored in fewer bits."""
        return False

    @property
    def files(self) -> set[Path]:
        """All files on which the weights depend."""
        beside = (self.path / name for name in ("config.json", "quantize_config.json"))
        return {entry.file for entry in self.entries()} | {path for path in beside if path.exists()}

    def _loader_for(self, dtype: torch.dtype) -> Loader:
        """The quickest way to the tensors in `dtype`."""
        return self.loader

    def entries(self) -> list[TensorEntry]:
        """Every stored tensor as the headers describe it; nothing is loaded."""
        return list(self._source.entries().values())

    def check(self) -> None:
        """Compare all headers with the configuration. Raises CheckpointError for anything amiss."""
        self.loader.check()

    def planned(self, dtype: torch.dtype | None = None) -> Sequence[PlannedTensor]:
        """All tensors under their canonical names in `dtype`, each read when asked for: for rewriting.

        Without `dtype` as they are stored: GPTQ in its parts, GGUF blocks as float32. Raises
        UnsupportedError for packed weights in a `dtype` and other dtypes, CheckpointError as `check`.
        """
        self.loader.check()
        loader = self.loader if dtype is None else self._loader_for(_float(dtype))
        return planned_tensors(loader, dtype)

    def load_model(
        self, *, device: torch.device | str = "cpu", dtype: torch.dtype, progress: bool = False
    ) -> CausalLM:
        """The model in eval mode without gradients, float weights in `dtype`, GPTQ linears as AffineLinear.

        On the CPU, weights stored in `dtype` stay mapped to their files: starting costs one reading of
        them. progress: a bar on standard error. Raises CheckpointError for missing, unexpected, misshapen
        or non-finite tensors, UnsupportedError for what cannot be loaded.
        """
        # A caller's inference mode must not leave its mark on weights that outlive it, and does not reach
        # the threads that dequantize.
        with torch.inference_mode(False), torch.no_grad():
            return self._loader_for(_float(dtype)).load(device=device, dtype=dtype, progress=progress)

    def load_packed(
        self,
        packing: Packing,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        progress: bool = False,
        idle: Callable[[], object] = lambda: None,
    ) -> LoadedModel:
        """As `load_model`, the linear layers packed for the native kernels where these run.

        What was quantized, by others or here, is kept packed in the cache: the next start reads it. idle:
        called, perhaps more than once, when from here on the work is the memory's and no longer Python's;
        a thread of Python started before would make every small step wait for it. Raises as `load_model`,
        and RequestError for a packing this checkpoint cannot have (Packing.check).
        """
        packing.check(self.quantization)
        device, dtype = torch.device(device), _float(dtype)
        kind = self.quantization.split()[0]  # none, GPTQ or GGUF
        worth_keeping = packing.rounds_any or kind == "GPTQ" or (kind == "GGUF" and packing.weights == "auto")
        with torch.inference_mode(False), torch.no_grad():
            if why_not_native(device) is None and worth_keeping:
                return load_kept(
                    self.loader, packing, identity=self._identity, dtype=dtype, progress=progress, idle=idle
                )
            idle()
            return pack_while_loading(
                self._loader_for(dtype), packing, device=device, dtype=dtype, progress=progress
            )

    def _identity(self) -> str:
        """Stands for the content of every file the weights depend on; hashing them is done once."""
        return identity_of([*self.files], content_hash)


def _float(dtype: torch.dtype) -> torch.dtype:
    if dtype not in FLOAT_DTYPES:
        words = str(dtype).removeprefix("torch.")
        raise UnsupportedError(f"A model in {words}.", "Choose float32, float16 or bfloat16.")
    return dtype
