"""Texts for a paged layer, fed in pieces, and their attention written out."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from qwenkit.kernels.key_form import KeyForm
from qwenkit.kernels.native_paged import NativePagedLayer
from qwenkit.kernels.nibbles import TorchNibbleLayer
from qwenkit.kernels.paged import FORMED, PagedLayer, PagedShape, RaggedRows, TorchPagedLayer


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


def key_form(shape: PagedShape) -> KeyForm | None:
    """Centers far larger than random keys, and steps of many sizes; of 8 bits powers of two and no center."""
    if shape.format not in FORMED:
        return None
    g = torch.Generator().manual_seed(7)
    size = shape.kv_heads, shape.head_dim
    center = 3 * torch.randn(size, generator=g)
    form = KeyForm(center, 2 ** (2 * torch.rand(size, generator=g) - 1))
    return form if shape.format == "int4" else KeyForm(torch.zeros(size), form.in_powers_of_two().step)


def native_layer(shape: PagedShape) -> NativePagedLayer:
    return NativePagedLayer(shape, key_form(shape))


def torch_layer(shape: PagedShape) -> TorchPagedLayer:
    kind = TorchNibbleLayer if shape.format == "int4" else TorchPagedLayer
    return kind(shape, keys=key_form(shape))


class Text:
    """Random queries, keys and values of one text, and blocks for it."""

    def __init__(self, length: int, blocks: list[int], seed: int, shape: PagedShape) -> None:
        g = torch.Generator().manual_seed(seed)
        self.qkv = torch.randn(length, shape.heads + 2 * shape.kv_heads, shape.head_dim, generator=g).to(
            shape.dtype
        )
        angle = torch.rand(length, shape.head_dim // 2, generator=g) * 6
        angle = torch.cat((angle, angle), dim=1)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.logn = 1 + torch.rand(length, generator=g)
        self.blocks, self.length, self.done = blocks, length, 0
        self.out = torch.empty(length, shape.heads, shape.head_dim).to(shape.dtype)


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
