"""The shape of a model: one dataclass, a literal table of sizes, and readers of every config.json dialect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from qwenkit.core.errors import ConfigError, UnsupportedError

V1_VALUES = "qwen_v1"
"""Key under which a file of another dialect keeps `ModelConfig.v1_values`."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything the forward pass depends on.

    architecture: the layout the checkpoint came in; "qwen" is the 2023 original, "qwen2" its dense heirs.
    ffn_size: width of the gated FFN, i.e. `intermediate_size / 2` of a v1 config.json.
    rotary_dim: leading channels of a head that are rotated; the rest pass through.
    seq_length: training length; above it dynamic NTK and LogN act, if on.
    max_positions: longest text the checkpoint declares (`max_position_embeddings`).
    """

    architecture: Literal["qwen", "qwen2"] = "qwen"
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    rotary_dim: int
    rope_base: float = 10000.0
    norm_eps: float = 1e-6
    seq_length: int = 8192
    max_positions: int = 8192
    dynamic_ntk: bool = False
    logn: bool = False
    tied_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                     "ffn_size", "seq_length", "max_positions"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(
                    f"{name}={value!r} in the model configuration.", "It must be a whole number >= 1."
                )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} KV heads.",
                "num_attention_heads must be a multiple of num_key_value_heads.",
            )
        if not 2 <= self.rotary_dim <= self.head_dim or self.rotary_dim % 2:
            raise ConfigError(
                f"rotary_dim={self.rotary_dim} with head_dim={self.head_dim}.",
                "It must be even, at least 2 and at most head_dim.",
            )

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query/key/value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and reply together that a request may use.

        With dynamic NTK the model cards claim four training lengths (reference: model section 1:
        1.8B and 7B 32K, 14B 8K), more than max_position_embeddings says for some.
        """
        return max(self.max_positions, 4 * self.seq_length) if self.dynamic_ntk else self.max_positions

    @property
    def parameter_count(self) -> int:
        """Number of weights, embeddings included; tied embeddings count once."""
        h, d = self.hidden_size, self.head_dim
        layer = self.qkv_size * (h + 1) + self.num_heads * d * h + 3 * h * self.ffn_size + 2 * h
        embeddings = self.vocab_size * h * (1 if self.tied_embeddings else 2)
        return embeddings + self.num_layers * layer + h

    def kv_bytes_per_token(self, bytes_per_value: float = 2) -> int:
        """Bytes of keys and values one token keeps in the cache over all layers."""
        return int(2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value)

    @classmethod
    def from_name(cls, name: str) -> ModelConfig:
        """Exact lookup in SIZES. Raises ConfigError listing the names."""
        if name not in SIZES:
            raise ConfigError(f"Unknown model size {name!r}.", f"Known sizes: {', '.join(SIZES)}.")
        return SIZES[name]

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Read a config.json of the v1 (either key generation) or Qwen2 dialect; unknown keys are ignored.

        Raises ConfigError for missing or invalid values, UnsupportedError for features not implemented.
        """
        model_type = config.get("model_type")
        if model_type == "qwen":
            return _from_v1(config)
        if model_type == "qwen2":
            return _from_qwen2(config)
        raise ConfigError(
            f"Unknown architecture: model_type is {model_type!r}.",
            "qwenkit runs model_type 'qwen' (Qwen 1.8B/7B/14B/72B) and 'qwen2' (dense Qwen1.5, 2 and 2.5).",
        )

    def to_v1_dict(self) -> dict[str, Any]:
        """config.json of the v1 dialect. Raises UnsupportedError when v1 cannot express the shape."""
        if self.num_kv_heads != self.num_heads or self.tied_embeddings:
            raise UnsupportedError(
                "The v1 layout has neither grouped KV heads nor tied embeddings.",
                "Expand them first (repeat KV heads, copy the embedding).",
            )
        return {
            "architectures": ["QWenLMHeadModel"],
            "model_type": "qwen",
            "tokenizer_class": "QWenTokenizer",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "kv_channels": self.head_dim,
            "intermediate_size": 2 * self.ffn_size,
            "rotary_pct": self.rotary_dim / self.head_dim,
            "rotary_emb_base": self.rope_base,
            "layer_norm_epsilon": self.norm_eps,
            "seq_length": self.seq_length,
            "max_position_embeddings": self.max_positions,
            "use_dynamic_ntk": self.dynamic_ntk,
            "use_logn_attn": self.logn,
            "tie_word_embeddings": False,
            "no_bias": True,
            "scale_attn_weights": True,
            "initializer_range": self.initializer_range,
            "attn_dropout_prob": 0.0,
            "emb_dropout_prob": 0.0,
            "use_cache": True,
        }

    @property
    def plain_length(self) -> int:
        """Most tokens an engine may read that knows neither dynamic NTK nor LogN."""
        return min(self.seq_length, self.max_positions) if self.beyond_training else self.max_positions

    @property
    def beyond_training(self) -> bool:
        """Whether dynamic NTK or LogN act on texts longer than the training length."""
        return self.dynamic_ntk or self.logn

    def v1_values(self) -> dict[str, Any]:
        """What the v1 dialect says and others cannot, under v1's keys; empty where that is nothing."""
        if self.architecture != "qwen" and not self.beyond_training and self.seq_length == self.max_positions:
            return {}
        return {
            "seq_length": self.seq_length,
            "max_position_embeddings": self.max_positions,
            "use_dynamic_ntk": self.dynamic_ntk,
            "use_logn_attn": self.logn,
            "initializer_range": self.initializer_range,
        }

    def with_v1_values(self, values: Any) -> ModelConfig:
        """This shape with what `v1_values` wrote. Raises ConfigError for values that are none."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"{V1_VALUES}={values!r} is not an object.", _REFETCH)
        return replace(
            self,
            seq_length=_whole(values, "seq_length", self.seq_length),
            max_positions=_whole(values, "max_position_embeddings", self.max_positions),
            dynamic_ntk=values.get("use_dynamic_ntk") is True,
            logn=values.get("use_logn_attn") is True,
            initializer_range=_real(values, "initializer_range", self.initializer_range),
        )

    def to_qwen2_dict(self) -> dict[str, Any]:
        """config.json of the Qwen2 dialect, readable by transformers.

        NTK and LogN have no key there: they stand in an object of ours, which other readers ignore, and
        the length they may use is the one that needs neither.
        """
        values = self.v1_values()
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn_size,
            "hidden_act": "silu",
            "rope_theta": self.rope_base,
            "rms_norm_eps": self.norm_eps,
            "max_position_embeddings": self.plain_length,
            "use_sliding_window": False,
            "tie_word_embeddings": self.tied_embeddings,
            "initializer_range": self.initializer_range,
            "use_cache": True,
            **({V1_VALUES: values} if values else {}),
        }


# The JSONs of August 2023 use older names (reference: model section 1); both must load.
_V1_ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "padded_vocab_size": "vocab_size",
}


_REFETCH = "Download the checkpoint's config.json again."


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise ConfigError(f"config.json has no {key!r}.", _REFETCH)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{key}={value!r} in config.json is not a whole number.", _REFETCH)
    return value


def _real(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key)
    value = default if value is None else value
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ConfigError(f"{key}={value!r} in config.json is not a number above 0.", _REFETCH)
    return float(value)


def _from_v1(raw: Mapping[str, Any]) -> ModelConfig:
    config = dict(raw)
    for old, new in _V1_ALIASES.items():
        if old in config:
            config.setdefault(new, config[old])
    heads = _whole(config, "num_attention_heads")
    head_dim = _whole(config, "kv_channels", 128)
    intermediate = _whole(config, "intermediate_size")
    if intermediate % 2:
        raise ConfigError(
            f"intermediate_size={intermediate} in a v1 config.json.",
            "It must be even: v1 stores twice the FFN width.",
        )
    seq_length = _whole(config, "seq_length", 2048)
    return ModelConfig(
        architecture="qwen",
        vocab_size=_whole(config, "vocab_size"),
        hidden_size=_whole(config, "hidden_size"),
        num_layers=_whole(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        ffn_size=intermediate // 2,
        rotary_dim=int(head_dim * _real(config, "rotary_pct", 1.0)),
        rope_base=_real(config, "rotary_emb_base", _real(config, "rope_theta", 10000.0)),
        norm_eps=_real(config, "layer_norm_epsilon", 1e-5),
        seq_length=seq_length,
        max_positions=_whole(config, "max_position_embeddings", seq_length),
        dynamic_ntk=bool(config.get("use_dynamic_ntk", True)),
        logn=bool(config.get("use_logn_attn", True)),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        initializer_range=_real(config, "initializer_range", 0.02),
    )


def _from_qwen2(config: Mapping[str, Any]) -> ModelConfig:
    # transformers 5 nests rotary settings in rope_parameters; earlier files have them at the top.
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UnsupportedError(
            f"config.json asks for rope scaling {kind!r}.",
            "Remove rope_scaling to run the model up to its training length.",
        )
    if config.get("use_sliding_window"):
        raise UnsupportedError(
            "config.json asks for sliding-window attention.",
            "Set use_sliding_window to false to run with full attention.",
        )
    heads = _whole(config, "num_attention_heads")
    hidden = _whole(config, "hidden_size")
    head_dim = _whole(config, "head_dim", hidden // max(heads, 1))
    positions = _whole(config, "max_position_embeddings", 32768)
    shape = ModelConfig(
        architecture="qwen2",
        vocab_size=_whole(config, "vocab_size"),
        hidden_size=hidden,
        num_layers=_whole(config, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_whole(config, "num_key_value_heads", heads),
        head_dim=head_dim,
        ffn_size=_whole(config, "intermediate_size"),
        rotary_dim=head_dim,
        rope_base=_real(rope, "rope_theta", _real(config, "rope_theta", 10000.0)),
        norm_eps=_real(config, "rms_norm_eps", 1e-6),
        seq_length=positions,
        max_positions=positions,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        initializer_range=_real(config, "initializer_range", 0.02),
    )
    return shape.with_v1_values(config[V1_VALUES]) if V1_VALUES in config else shape


def _v1(
    hidden: int, layers: int, ffn: int, vocab: int, seq: int, positions: int, **other: Any
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab, hidden_size=hidden, num_layers=layers, num_heads=hidden // 128,
        num_kv_heads=hidden // 128, head_dim=128, ffn_size=ffn, rotary_dim=128, seq_length=seq,
        max_positions=positions, **{"dynamic_ntk": True, "logn": True, **other},
    )  # fmt: skip


def _v2(hidden: int, layers: int, heads: int, kv: int, ffn: int, vocab: int, tied: bool) -> ModelConfig:
    return ModelConfig(
        architecture="qwen2", vocab_size=vocab, hidden_size=hidden, num_layers=layers, num_heads=heads,
        num_kv_heads=kv, head_dim=hidden // heads, ffn_size=ffn, rotary_dim=hidden // heads, rope_base=1e6,
        seq_length=32768, max_positions=32768, tied_embeddings=tied,
    )  # fmt: skip


SIZES: Mapping[str, ModelConfig] = {
    #                  hidden layers  ffn   vocab   trained  positions
    "qwen-1.8b": _v1(2048, 24, 5504, 151936, 8192, 8192),
    "qwen-7b": _v1(4096, 32, 11008, 151936, 8192, 32768),
    "qwen-14b": _v1(5120, 40, 13696, 152064, 2048, 8192),
    "qwen-72b": _v1(8192, 80, 24576, 152064, 32768, 32768, rope_base=1e6, dynamic_ntk=False, logn=False),
    #                  hidden layers heads kv  ffn   vocab   tied
    "qwen2.5-0.5b": _v2(896, 24, 14, 2, 4864, 151936, True),
    "qwen2.5-1.5b": _v2(1536, 28, 12, 2, 8960, 151936, True),
    "qwen2.5-7b": _v2(3584, 28, 28, 4, 18944, 152064, False),
}
"""Published shapes by exact name (reference: model section 1; the Qwen2.5 technical report)."""
