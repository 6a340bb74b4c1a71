"""Configuration dialects, the size table and its published numbers."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.core import ConfigError, UnsupportedError
from qwenkit.model import SIZES, CausalLM, ModelConfig

V1 = {
    "model_type": "qwen", "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
    "kv_channels": 128, "intermediate_size": 11008, "vocab_size": 151936, "seq_length": 8192,
    "max_position_embeddings": 8192, "rotary_emb_base": 10000, "use_dynamic_ntk": True,
    "use_logn_attn": True, "layer_norm_epsilon": 1e-6, "rotary_pct": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen-1.8b", 1_836_828_672),
        ("qwen-7b", 7_721_324_544),
        ("qwen-14b", 14_167_290_880),
        ("qwen-72b", 72_287_920_128),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-7b", 7_615_616_512),
    ],
)
def test_parameter_counts_are_the_published_ones(name, parameters):
    assert ModelConfig.from_name(name).parameter_count == parameters


def test_parameter_count_equals_the_built_model():
    config = ModelConfig(
        vocab_size=50, hidden_size=24, num_layers=2, num_heads=3, num_kv_heads=1, head_dim=8,
        ffn_size=20, rotary_dim=8, tied_embeddings=True,
    )  # fmt: skip
    assert config.parameter_count == sum(p.numel() for p in CausalLM(config).parameters())


def test_cache_bytes_are_the_documented_ones():
    kilobytes = [SIZES[f"qwen-{size}"].kv_bytes_per_token() // 1024 for size in ("1.8b", "7b", "14b", "72b")]
    assert kilobytes == [192, 512, 800, 2560]


def test_context_lengths_are_those_the_model_cards_claim():
    claims = [SIZES[f"qwen-{size}"].context_length // 1024 for size in ("1.8b", "7b", "14b", "72b")]
    assert claims == [32, 32, 8, 32]


def test_v1_dictionary_reads_as_the_table_says():
    assert ModelConfig.from_dict(V1) == SIZES["qwen-1.8b"]
    assert ModelConfig.from_dict(SIZES["qwen-7b"].to_v1_dict()) == SIZES["qwen-7b"]
    assert ModelConfig.from_dict(SIZES["qwen2.5-1.5b"].to_qwen2_dict()) == SIZES["qwen2.5-1.5b"]


def test_keys_of_the_first_release_are_aliases():
    old = {
        "model_type": "qwen", "n_embd": 4096, "n_layer": 32, "n_head": 32, "n_positions": 6144,
        "ffn_hidden_size": 22016, "padded_vocab_size": 151936, "kv_channels": 128, "seq_length": 2048,
        "layer_norm_epsilon": 1e-5,
    }  # fmt: skip
    config = ModelConfig.from_dict(old)
    assert (config.hidden_size, config.num_layers, config.num_heads) == (4096, 32, 32)
    assert (config.ffn_size, config.vocab_size, config.max_positions) == (11008, 151936, 6144)
    assert config.norm_eps == 1e-5


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model_type": "llama"}, ConfigError, "llama"),
        ({"model_type": None}, ConfigError, "None"),
        ({"hidden_size": None}, ConfigError, "hidden_size"),
        ({"num_hidden_layers": 0}, ConfigError, "num_layers=0"),
        ({"num_hidden_layers": "24"}, ConfigError, "'24'"),
        ({"intermediate_size": 11009}, ConfigError, "11009"),
        ({"rotary_pct": 0.01}, ConfigError, "rotary_dim=1"),
    ],
)
def test_bad_v1_configs_are_named(change, error, words):
    with pytest.raises(error, match=words):
        ModelConfig.from_dict({**V1, **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [({"use_sliding_window": True}, "sliding"), ({"rope_scaling": {"type": "yarn", "factor": 4}}, "yarn")],
)
def test_features_of_qwen2_that_are_missing_are_refused(change, words):
    with pytest.raises(UnsupportedError, match=words):
        ModelConfig.from_dict({**SIZES["qwen2.5-0.5b"].to_qwen2_dict(), **change})


def test_unknown_size_lists_the_choices():
    with pytest.raises(ConfigError, match=r"qwen-1\.8b"):
        ModelConfig.from_name("qwen-1.8B")


@given(
    st.dictionaries(
        st.sampled_from(sorted(V1)), st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=3))
    )
)
def test_hostile_configs_raise_only_our_errors(change):
    with contextlib.suppress(ConfigError, UnsupportedError):
        ModelConfig.from_dict({**V1, **change})
