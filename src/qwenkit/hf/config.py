"""config.json of the 2023 models as a transformers configuration.

Knows the JSON's keys, old and new, and the precision flags of the original; the shape itself is
`qwenkit.model.ModelConfig`. Does not know weights.
"""

from __future__ import annotations

# mypy: allow-untyped-calls
# transformers annotates only part of what it asks to be called and overridden.
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from qwenkit.core import ConfigError, UnsupportedError
from qwenkit.model import ModelConfig

PRECISION_FLAGS: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}

# Key names of the files of August 2023 (reference: model section 1).
_ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "attn_pdrop": "attn_dropout_prob",
    "embd_pdrop": "emb_dropout_prob",
    "padded_vocab_size": "vocab_size",
}


class QWenConfig(PreTrainedConfig):
    """Configuration of Qwen 1.8B / 7B / 14B / 72B (`model_type` "qwen").

    intermediate_size is twice the FFN width. bf16, fp16, fp32: at most one true; chooses the weights'
    dtype unless a dtype is given. use_flash_attn: "auto", True or False, all the same here, since torch's
    scaled dot-product attention picks its kernel. use_cache_quantization: keep keys and values as int8 by
    the original scheme. use_cache_kernel: accepted; there is no separate kernel to switch on.

    Raises ConfigError for a contradiction and UnsupportedError for a switch that cannot be honoured.
    """

    model_type = "qwen"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (transformers' own declaration)

    def __init__(
        self,
        vocab_size: int = 151936,
        hidden_size: int = 4096,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        kv_channels: int = 128,
        intermediate_size: int = 22016,
        max_position_embeddings: int | None = None,
        seq_length: int = 2048,
        rotary_pct: float = 1.0,
        rotary_emb_base: float = 10000,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        use_dynamic_ntk: bool = True,
        use_logn_attn: bool = True,
        use_flash_attn: bool | str = "auto",
        use_cache: bool = True,
        use_cache_quantization: bool = False,
        use_cache_kernel: bool = False,
        softmax_in_fp32: bool = False,
        attn_dropout_prob: float = 0.0,
        emb_dropout_prob: float = 0.0,
        scale_attn_weights: bool = True,
        no_bias: bool = True,
        bf16: bool = False,
        fp16: bool = False,
        fp32: bool = False,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        given = {new: kwargs.pop(old) for old, new in _ALIASES.items() if old in kwargs}
        self.vocab_size = given.get("vocab_size", vocab_size)
        self.hidden_size = given.get("hidden_size", hidden_size)
        self.num_hidden_layers = given.get("num_hidden_layers", num_hidden_layers)
        self.num_attention_heads = given.get("num_attention_heads", num_attention_heads)
        self.kv_channels = kv_channels
        self.intermediate_size = given.get("intermediate_size", intermediate_size)
        self.seq_length = seq_length
        positions = given.get("max_position_embeddings", max_position_embeddings)
        self.max_position_embeddings = seq_length if positions is None else positions
        self.rotary_pct = rotary_pct
        self.rotary_emb_base = rotary_emb_base
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.use_dynamic_ntk = use_dynamic_ntk
        self.use_logn_attn = use_logn_attn
        self.use_flash_attn = use_flash_attn
        self.use_cache = use_cache
        self.use_cache_quantization = use_cache_quantization
        self.use_cache_kernel = use_cache_kernel
        self.softmax_in_fp32 = softmax_in_fp32
        self.attn_dropout_prob = given.get("attn_dropout_prob", attn_dropout_prob)
        self.emb_dropout_prob = given.get("emb_dropout_prob", emb_dropout_prob)
        self.scale_attn_weights = scale_attn_weights
        self.no_bias = no_bias
        self.bf16, self.fp16, self.fp32 = bool(bf16), bool(fp16), bool(fp32)
        self.tie_word_embeddings = tie_word_embeddings
        kwargs.setdefault("tokenizer_class", "QWenTokenizer")
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings, **kwargs})
        self.check()

    def check(self) -> None:
        """Raise what the constructor raises; attributes may have been set since."""
        self.precision  # noqa: B018  (raises when two flags are set)
        if not self.scale_attn_weights:
            raise UnsupportedError(
                "config.json sets scale_attn_weights to false.",
                "No released Qwen does; set it to true, attention is always divided by sqrt(head size).",
            )
        if self.use_flash_attn not in (True, False, "auto"):
            raise ConfigError(f"use_flash_attn={self.use_flash_attn!r}.", 'Use True, False or "auto".')

    @property
    def precision(self) -> torch.dtype | None:
        """The dtype the flags ask for; None when no flag is set. Raises ConfigError for two."""
        chosen = [name for name in PRECISION_FLAGS if getattr(self, name)]
        if len(chosen) > 1:
            raise ConfigError(f"{' and '.join(chosen)} are all true.", "Set at most one of bf16, fp16, fp32.")
        return PRECISION_FLAGS[chosen[0]] if chosen else None

    def set_precision(self, dtype: torch.dtype) -> None:
        """Clear the flags that contradict `dtype`, so that what is saved says what the weights are."""
        for name, meant in PRECISION_FLAGS.items():
            if meant != dtype:
                setattr(self, name, False)

    @property
    def shape(self) -> ModelConfig:
        """What the forward pass depends on. Raises ConfigError for impossible values."""
        return ModelConfig.from_dict(self.to_dict())

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; a precision the caller passes (flag or dtype) beats the file's flags."""
        flags = [name for name in PRECISION_FLAGS if kwargs.get(name)]
        dtype = as_dtype(kwargs.get("dtype")) or as_dtype(kwargs.get("torch_dtype"))
        check_precision(flags, dtype)
        if flags or dtype is not None:
            config_dict = {**config_dict, **dict.fromkeys(PRECISION_FLAGS, False)}
        return super().from_dict(config_dict, **kwargs)


def as_dtype(value: Any) -> torch.dtype | None:
    """A torch dtype from itself or its name; None for None and "auto". Raises ConfigError otherwise."""
    if value is None or value == "auto":
        return None
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if not isinstance(found, torch.dtype):
        raise ConfigError(
            f"dtype={value!r} is not a torch dtype.", 'Use for example torch.bfloat16 or "auto".'
        )
    return found


def check_precision(flags: list[str], dtype: torch.dtype | None) -> None:
    """Raise ConfigError when the flags the caller set contradict each other or the dtype."""
    meant = {PRECISION_FLAGS[name] for name in flags}
    if len(meant) > 1:
        raise ConfigError(f"{' and '.join(flags)} are all true.", "Pass at most one of bf16, fp16, fp32.")
    if dtype is not None and meant - {dtype}:
        raise ConfigError(f"{flags[0]}=True contradicts dtype={dtype}.", "Pass one of the two.")
