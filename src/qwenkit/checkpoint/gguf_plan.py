"""What a GGUF file will hold, known before any weight is read, and how it is written.

The gguf library writes the header; the weights follow one tensor at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from qwenkit.checkpoint.generation_config import generation_dict
from qwenkit.checkpoint.gguf_checkpoint import GENERATION, OWN_KEYS
from qwenkit.checkpoint.gguf_forms import PlannedBlocks
from qwenkit.core import CheckpointError, GenerationConfig
from qwenkit.model import ModelConfig
from qwenkit.model.config import V1_VALUES
from qwenkit.text import chatml

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from qwenkit.text import Tokenizer

_ALIGNMENT = 32  # bytes; the format's default
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}


@dataclass(frozen=True, kw_only=True)
class GGUFPlan:
    """One file of architecture `arch`, most of its weights in `form`.

    tensors: under GGUF's names. chat_template: written for any model; without one, a chat model gets
    ChatML's. name and note: shown by other programs as name and description of the model.
    """

    arch: Literal["qwen", "qwen2"]
    config: ModelConfig
    tensors: Sequence[PlannedBlocks]
    form: str
    tokenizer: Tokenizer
    generation: GenerationConfig
    chat_template: str | None
    name: str
    note: str

    @property
    def files(self) -> dict[str, Sequence[PlannedBlocks]]:
        """The one file -> the tensors it will hold."""
        return {"": self.tensors}

    def write(self, path: Path) -> None:
        """Write the file at `path`; one tensor is held at a time. CheckpointError for one not as planned."""
        from gguf import GGMLQuantizationType, GGUFWriter

        writer = GGUFWriter(path, self.arch)
        self._describe_model(writer)
        self._describe_text(writer)
        for tensor in self.tensors:
            kind = GGMLQuantizationType[tensor.form]
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        with path.open("ab") as file:
            for tensor in self.tensors:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                held = tensor.read()
                if held.nbytes != tensor.nbytes:
                    raise CheckpointError(
                        f"Tensor {tensor.name!r} has {held.nbytes} bytes, not {tensor.nbytes} as announced.",
                        "Report this as a bug of qwenkit.",
                    )
                file.write(held.data)
                del held
                tensor.release()
            file.write(bytes(-file.tell() % _ALIGNMENT))

    def _describe_model(self, writer: GGUFWriter) -> None:
        config = self.config
        writer.add_type("model")
        writer.add_name(self.name)
        if self.note:
            writer.add_description(self.note)
        writer.add_file_type(_FILE_TYPES[self.form])
        writer.add_quantization_version(2)
        add_shape(writer, config, self.arch, config.plain_length)
        values = config.v1_values()
        if values:
            writer.add_string(f"{OWN_KEYS}.{V1_VALUES}", json.dumps(values))

    def _describe_text(self, writer: GGUFWriter) -> None:
        from qwenkit.text.gguf_vocabulary import to_gguf

        vocabulary = to_gguf(self.tokenizer, self.config.vocab_size)
        specials = self.tokenizer.special_tokens
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_list(vocabulary.tokens)
        writer.add_token_types(vocabulary.types)
        writer.add_token_merges(vocabulary.merges)
        writer.add_add_bos_token(False)
        chat = self.generation.chat_format == "chatml"
        end_of_text = specials.get("<|endoftext|>")
        end_of_turn = specials.get("<|im_end|>") if chat else None
        if end_of_text is not None:
            writer.add_bos_token_id(end_of_text)
            writer.add_pad_token_id(end_of_text)
        end = end_of_text if end_of_turn is None else end_of_turn
        if end is not None:
            writer.add_eos_token_id(end)
        if end_of_turn is not None:
            writer.add_eot_token_id(end_of_turn)
        template = self.chat_template
        if template is None and chat:
            template = chatml.jinja_template(self.generation.default_system)
        if template is not None:
            writer.add_chat_template(template)
        sampling = self.generation.sampling
        if sampling.temperature:  # the keys by which llama.cpp finds a model's defaults
            values = {"temp": sampling.temperature, "top_p": sampling.top_p, "min_p": sampling.min_p,
                      "penalty_repeat": sampling.repetition_penalty}  # fmt: skip
            for key, value in values.items():
                if value is not None:
                    writer.add_float32(f"general.sampling.{key}", value)
            if sampling.top_k is not None:
                writer.add_int32("general.sampling.top_k", sampling.top_k)
        writer.add_string(f"{OWN_KEYS}.{GENERATION}", json.dumps(generation_dict(self.generation)))


def add_shape(writer: GGUFWriter, config: ModelConfig, arch: str, context_length: int) -> None:
    """The fields by which readers of `arch`, qwen or qwen2, size the model."""
    writer.add_block_count(config.num_layers)
    writer.add_context_length(context_length)
    writer.add_embedding_length(config.hidden_size)
    # As in its config.json, twice the width: readers of architecture qwen halve it.
    writer.add_feed_forward_length(config.ffn_size * (2 if arch == "qwen" else 1))
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
