"""Paged attention against attention written out over whole texts."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from qwenkit.kernels.paged import KV_FORMATS, KVFormat, PagedLayer, PagedShape, RaggedRows, TorchPagedLayer

SHAPE = PagedShape(blocks=24, block_size=4, heads=6, kv_heads=2, head_dim=8, dtype=torch.float32)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channel pairs (j, j + r/2) turned by their angle; x [n, heads, d], cos and sin [n, r]."""
    half = cos.shape[1] // 2
    out = x.clone()
    for j in range(half):
        a, b = x[..., j], x[..., half + j]
        c, s = cos[:, None, j], sin[:, None, j]
        out[..., j], out[..., half + j] = a * c - b * s, b * c + a * s
    return out


def written_out(
    qkv: Tensor, cos: Tensor, sin: Tensor, logn: Tensor, shape: PagedShape, window: int | None
) -> Tensor:
    """Attention of one whole text, a query and a head at a time, in float64."""
    q, k, v = qkv.double().split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    q, k = rotated(q, cos.double(), sin.double()), rotated(k, cos.double(), sin.double())
    out = torch.zeros_like(q)
    for i in range(qkv.shape[0]):
        first = 0 if window is None else max(0, i + 1 - window)
        for h in range(shape.heads):
            kv = h // (shape.heads // shape.kv_heads)
            scores = (k[first : i + 1, kv] @ (q[i, h] * logn[i])) / math.sqrt(shape.head_dim)
            out[i, h] = scores.softmax(0) @ v[first : i + 1, kv]
    return out


class Text:
    """Random queries, keys and values of one text, and blocks for it."""

    def __init__(self, length: int, blocks: list[int], seed: int, shape: PagedShape = SHAPE) -> None:
        g = torch.Generator().manual_seed(seed)
        self.qkv = torch.randn(length, shape.heads + 2 * shape.kv_heads, shape.head_dim, generator=g)
        angle = torch.rand(length, shape.head_dim // 2, generator=g) * 6
        angle = torch.cat((angle, angle), dim=1)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.logn = 1 + torch.rand(length, generator=g)
        self.blocks, self.length, self.done = blocks, length, 0
        self.out = torch.empty(length, shape.heads, shape.head_dim)


def run(layer: PagedLayer, texts: list[Text], rng: random.Random, window: int | None = None) -> None:
    """Feed all texts in random pieces, several rows a step."""
    while any(t.done < t.length for t in texts):
        going = [t for t in texts if t.done < t.length]
        going = rng.sample(going, rng.randint(1, len(going)))
        counts = [rng.choice([1, 1, 3, t.length]) for t in going]
        counts = [min(c, t.length - t.done) for c, t in zip(counts, going, strict=True)]
        rows = RaggedRows.make([t.done for t in going], counts, [t.blocks for t in going])
        spans = [slice(t.done, t.done + c) for t, c in zip(going, counts, strict=True)]
        parts = [
            [getattr(t, n)[s] for t, s in zip(going, spans, strict=True)]
            for n in ("qkv", "cos", "sin", "logn")
        ]
        qkv, cos, sin, logn = map(torch.cat, parts)
        out = layer.attend(qkv, (cos, sin), logn, rows, window)
        for t, s, o in zip(going, spans, out.split(counts), strict=True):
            t.out[s] = o
            t.done = s.stop


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_many_texts_give_attention_over_each_whole_text(seed: int, window: int | None) -> None:
    rng = random.Random(seed)
    free = list(range(SHAPE.blocks))
    rng.shuffle(free)
    texts = []
    for i in range(3):
        length = rng.randint(1, 30)
        texts.append(Text(length, [free.pop() for _ in range(-(-length // SHAPE.block_size))], seed * 10 + i))
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
def test_eight_bits_come_close(format: KVFormat) -> None:
    shape = PagedShape(24, 4, 6, 2, 8, torch.float32, format)
    text = Text(24, list(range(6)), seed=3)
    run(TorchPagedLayer(shape), [text], random.Random(0))
    exact = written_out(text.qkv, text.cos, text.sin, text.logn, SHAPE, None)
    error = (text.out - exact).abs().max()
    assert 1e-5 < error < 0.05


def test_copied_blocks_hold_the_same() -> None:
    layer = TorchPagedLayer(PagedShape(24, 4, 6, 2, 8, torch.float32, "int8"))
    text = Text(9, [0, 1, 2], seed=1)
    rows = RaggedRows.make([0], [8], [text.blocks])
    layer.attend(text.qkv[:8], (text.cos[:8], text.sin[:8]), text.logn[:8], rows)
    layer.copy([(0, 20), (1, 21)])
    last = (text.qkv[8:], (text.cos[8:], text.sin[8:]), text.logn[8:])
    first = layer.attend(*last, RaggedRows.make([8], [1], [[0, 1, 2]]))
    assert torch.equal(first, layer.attend(*last, RaggedRows.make([8], [1], [[20, 21, 22]])))
