"""Paged attention against attention written out over whole texts."""

from __future__ import annotations

import random

import pytest
import torch
from paged_texts import Text, run, torch_layer, written_out

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
