"""Random models of a shape: the bytes a token reads and the operations it needs, counted independently."""

from __future__ import annotations

import math

import pytest
import torch

from qwenkit.bench import cost
from qwenkit.bench.shapes import GROUP, byte_tokenizer, random_model
from qwenkit.core import RequestError
from qwenkit.model import Batch, ModelConfig
from qwenkit.quant import pack_model


def tiny(**other: object) -> ModelConfig:
    shape: dict[str, object] = {
        "vocab_size": 512, "hidden_size": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
        "head_dim": 32, "ffn_size": 256, "rotary_dim": 32, "architecture": "qwen2",
    }  # fmt: skip
    return ModelConfig(**{**shape, **other})  # type: ignore[arg-type]


def matrices(config: ModelConfig) -> list[tuple[int, int]]:
    """[rows, columns] of every linear layer of the blocks."""
    h, f = config.hidden_size, config.ffn_size
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return [(heads, h), (h, config.num_heads * config.head_dim), (f, h), (f, h), (h, f)] * config.num_layers


@pytest.mark.parametrize(("weights", "bits"), [("bf16", 16), ("int8", 8), ("int4", 4)])
def test_bytes_a_token_reads(weights: str, bits: int) -> None:
    config = tiny()
    model = random_model(config, weights)
    pack_model(model)

    def held(rows: int, columns: int, bits: int) -> int:  # a float16 scale a group, and a zero in 4 bits
        return rows * columns * bits // 8 + rows * columns // GROUP * {16: 0, 8: 2, 4: 3}[bits]

    blocks = sum(held(rows, columns, bits) for rows, columns in matrices(config))
    head = held(512, 128, 16 if weights == "bf16" else 8)
    small = config.num_layers * (256 + 256) + 5 * 128  # biases and norms
    assert blocks + head < cost.weight_bytes(model) <= blocks + head + 4 * small + 40 * len(matrices(config))


def test_a_tied_embedding_is_read_once() -> None:
    tied, own = (random_model(tiny(tied_embeddings=tied), "bf16") for tied in (True, False))
    assert cost.weight_bytes(tied) == cost.weight_bytes(own)


def test_operations_of_a_token() -> None:
    config = tiny()
    assert cost.linear_operations(config) == 2 * sum(math.prod(shape) for shape in matrices(config))
    assert cost.output_operations(config) == 2 * 512 * 128


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_a_random_model_gives_finite_logits(weights: str) -> None:
    model = random_model(tiny(), weights)
    pack_model(model)
    with torch.inference_mode():
        logits = model(torch.arange(20)[None], Batch.make(1, 20))
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(RequestError, match="int3"):
        random_model(tiny(), "int3")


def test_every_kernel_is_named_with_its_layers() -> None:
    model = random_model(tiny(), "int4")
    pack_model(model)
    for rows in (1, 64):
        names = cost.kernels(model, rows)
        assert sum(int(name.rpartition("(")[2].split()[0]) for name in names) == len(matrices(tiny())) + 1


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("int4: AMX int8 tiles (96 layers)", "int8_amx"),
        ("int8: AVX-512 VNNI int8 (1 layers)", "int8_vnni"),
        ("bfloat16: AMX bf16 tiles (5 layers)", "bf16_amx"),
        ("bfloat16: AVX-512 float (5 layers)", "fma"),
        ("float32: torch (5 layers)", None),
    ],
)
def test_the_peak_that_bounds_a_kernel(kernel: str, kind: str | None) -> None:
    assert cost.peak_kind(kernel) == kind


@pytest.mark.parametrize("rows", [151936, 152064])
def test_the_random_vocabulary_has_the_ids_of_the_real_one(rows: int) -> None:
    tokenizer = byte_tokenizer(rows)
    assert min(tokenizer.special_tokens.values()) == 151643
    assert len(tokenizer) == 151851
    assert tokenizer.decode([0, 255, 256]) == b"\x00\xff\x00\x00".decode(errors="replace")
