"""Paged attention against attention written out over whole texts."""

from __future__ import annotations

import random

import pytest
import torch
from paged_texts import Text, run, torch_layer, written_out

from qwenkit.core import UnsupportedError
from qwenkit.kernels import paged_layer
from qwenkit.kernels.key_form import KeyForm
from qwenkit.kernels.paged import KV_FORMATS, KVFormat, PagedShape, RaggedRows, TorchPagedLayer

SHAPE = PagedShape(blocks=24, block_size=4, heads=6, kv_heads=2, head_dim=8, dtype=torch.float32)


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_many_texts_give_attention_over_each_whole_text(seed: int, window: int | None) -> None:
    rng = random.Random(seed)
    free = list(range(SHAPE.blocks))
    rng.shuffle(free)
    texts = []
    for i in range(3):
        length = rng.randint(1, 30)
        texts.append(
            Text(length, [free.pop() for _ in range(-(-length // SHAPE.block_size))], seed * 10 + i, SHAPE)
        )
    run(TorchPagedLayer(SHAPE), texts, rng, window)
    for t in texts:
        torch.testing.assert_close(
            t.out.double(), written_out(t.qkv, t.cos, t.sin, t.logn, SHAPE, window), atol=1e-5, rtol=1e-5
        )


def test_positions_count_each_row_from_its_start() -> None:
    rows = RaggedRows.make([5, 0, 9], [2, 3, 1], [[1, 2], [3], [4, 5, 6]])
    assert rows.positions.tolist() == [5, 6, 0, 1, 2, 9]
    assert rows.tables.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    assert rows.spans() == [(0, 2, 5), (2, 5, 0), (5, 6, 9)]


@pytest.mark.parametrize("format", [f for f in KV_FORMATS if f != "float"])
def test_few_bits_come_close(format: KVFormat) -> None:
    shape = PagedShape(24, 4, 6, 2, 8, torch.float32, format)
    text = Text(24, list(range(6)), 3, SHAPE)
    run(torch_layer(shape), [text], random.Random(0))
    exact = written_out(text.qkv, text.cos, text.sin, text.logn, SHAPE, None)
    error = (text.out - exact).abs().max()
    assert 1e-5 < error < (1 if format == "int4" else 0.05)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_copied_blocks_hold_the_same(format: KVFormat) -> None:
    layer = torch_layer(PagedShape(24, 4, 6, 2, 8, torch.float32, format))
    text = Text(9, [0, 1, 2], 1, SHAPE)
    rows = RaggedRows.make([0], [8], [text.blocks])
    layer.attend(text.qkv[:8], (text.cos[:8], text.sin[:8]), text.logn[:8], rows)
    layer.copy([(0, 20), (1, 21)])
    last = (text.qkv[8:], (text.cos[8:], text.sin[8:]), text.logn[8:])
    first = layer.attend(*last, RaggedRows.make([8], [1], [[0, 1, 2]]))
    assert torch.equal(first, layer.attend(*last, RaggedRows.make([8], [1], [[20, 21, 22]])))


@pytest.mark.parametrize("block_size", [8, 32])  # in torch, and compiled where that is built
@pytest.mark.parametrize("format", ["int8", "int8-affine"])
def test_a_large_bias_in_few_channels_of_keys_costs_little(format: KVFormat, block_size: int) -> None:
    """As those of small Qwen2 models; a scale for a token and head is then that of the bias."""
    shape = PagedShape(96 // block_size, block_size, 6, 2, 64, torch.float32, format)
    text = Text(96, list(range(shape.blocks)), 3, shape)
    bias = torch.zeros(2, 64)
    bias[:, 3], bias[:, 40] = 150, -60
    text.qkv[:, 6:8] += bias
    text.qkv[:, :6, [3, 8, 35, 40]] *= 0.01  # what attends to such channels is small
    q, k = text.qkv[:, :6], text.qkv[:, 6:8]
    form = KeyForm.of_samples(q, k, torch.zeros(2, 64), 64).in_powers_of_two()
    exact = written_out(text.qkv, text.cos, text.sin, text.logn, shape, None)
    errors = []
    for keys in (None, form):
        text.done = 0
        run(paged_layer(shape, keys=keys), [text], random.Random(0))
        errors.append(float((text.out - exact).abs().mean()))
    assert errors[0] > 0.05 > 0.01 > errors[1]


def test_powers_of_two_lie_where_bias_and_queries_say() -> None:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(99, 4, 12, generator=g), torch.randn(99, 2, 12, generator=g)
    k[:, 1, 6] += 64  # whose partner in rotation of 8 channels is 2
    k[:, 0, 9] *= 64
    q[:, :2, 10] *= 64
    step = KeyForm.of_samples(q, k, torch.zeros(2, 12), 8).in_powers_of_two().step
    expected = torch.ones(2, 12)
    expected[1, [2, 6]] = torch.tensor(64 / 2**0.5).sqrt().log2().round().exp2()
    expected[0, 9], expected[0, 10] = 8, 1 / 8
    assert torch.equal(step, expected)


@pytest.mark.parametrize("broken", [0.0, torch.nan, torch.inf])
def test_channels_of_no_size_have_steps_of_one(broken: float) -> None:
    q, k = torch.ones(5, 6, 12), torch.full((5, 3, 12), 16.0)
    k[:, 0], q[:, 2:4] = broken, broken
    step = KeyForm.of_samples(q, k, torch.zeros(3, 12), 8).in_powers_of_two().step
    assert step.tolist() == [[1] * 12, [1] * 12, [4] * 12]


@pytest.mark.parametrize("block_size", [8, 32])
def test_forms_that_do_not_suit_are_refused(block_size: int) -> None:
    def layer(format: KVFormat, keys: KeyForm) -> None:
        paged_layer(PagedShape(2, block_size, 4, 2, 8, torch.float32, format), keys=keys)

    plain = KeyForm.plain(2, 8)
    for format in ("float", "int8-original"):
        with pytest.raises(UnsupportedError, match="take no form"):
            layer(format, plain)
    for format in ("int8", "int8-affine", "int4"):
        for keys in (KeyForm.plain(2, 9), KeyForm(plain.center, plain.center)):
            with pytest.raises(UnsupportedError, match=r"for \(2, .*step of 0"):
                layer(format, keys)
    with pytest.raises(UnsupportedError, match="has a center"):
        layer("int8", KeyForm(plain.step, plain.step))
    layer("int4", KeyForm(plain.step, plain.step))
