"""Paged attention of a published shape: decoding at a depth, and prompts, against what this machine can do.

    python bench/attention.py --shape qwen-1.8b --depth 4096 --format float
    python bench/attention.py --shape qwen2.5-1.5b --depth 0 --rows 8
    python bench/attention.py --shape qwen-1.8b --prompt 512,2048

Decoding: a step of `rows` texts with `depth` tokens before them, through all layers (more than any cache
holds), so GB/s is memory: keys and values read over the time, against the bandwidth measured before and
after. Prompts: one layer, 2 * 2 * d * heads operations for each key a query sees. Medians of the repeats. The
torch column is scaled_dot_product_attention over keys and values that lie together, in bfloat16.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

from qwenkit.kernels import native, paged_layer
from qwenkit.kernels.paged import KV_FORMATS, PagedLayer, PagedShape, RaggedRows


class Model(NamedTuple):
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


SHAPES = {
    "qwen-1.8b": Model(24, 16, 16, 128),
    "qwen-7b": Model(32, 32, 32, 128),
    "qwen2.5-0.5b": Model(24, 14, 2, 64),
    "qwen2.5-1.5b": Model(28, 12, 2, 128),
    "qwen2.5-7b": Model(28, 28, 4, 128),
}
BLOCK = 32


def seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Bench:
    """Layers of one shape with room for some texts of some length."""

    def __init__(
        self, model: Model, options: argparse.Namespace, rows: int, length: int, layers: int
    ) -> None:
        self.model, self.rows, self.length = model, rows, length
        self.per_text = -(-length // BLOCK)
        dtype = getattr(torch, options.dtype)
        shape = PagedShape(
            rows * self.per_text, BLOCK, model.heads, model.kv_heads, model.head_dim, dtype, options.format
        )
        self.layers: list[PagedLayer] = [paged_layer(shape) for _ in range(layers)]
        order = torch.randperm(rows * self.per_text).tolist()
        self.tables = [order[r * self.per_text : (r + 1) * self.per_text] for r in range(rows)]
        self.repeats = options.repeats

    def step(self, start: int, count: int, window: int | None = None) -> Callable[[], None]:
        """A step of `count` tokens a text from position `start` on, through all layers."""
        shape = self.layers[0].shape
        tokens = self.rows * count
        qkv = torch.randn(tokens, shape.heads + 2 * shape.kv_heads, shape.head_dim).to(shape.dtype)
        angle = torch.rand(tokens, shape.head_dim) * 6
        angles = angle.cos(), angle.sin()
        rows = RaggedRows.make([start] * self.rows, [count] * self.rows, self.tables)

        def run() -> None:
            for layer in self.layers:
                layer.attend(qkv, angles, None, rows, window)

        return run

    def fill(self, length: int) -> None:
        for start in range(0, length, 1024):
            self.step(start, min(1024, length - start), window=1)()


def torch_decode(model: Model, rows: int, depth: int, layers: int, repeats: int) -> float:
    keys = torch.randn(layers, 2, rows, model.kv_heads, depth + 1, model.head_dim, dtype=torch.bfloat16)
    q = torch.randn(rows, model.kv_heads, model.heads // model.kv_heads, model.head_dim).bfloat16()
    return seconds(lambda: [F.scaled_dot_product_attention(q, k, v) for k, v in keys], repeats)


def torch_prompt(model: Model, length: int, repeats: int) -> float:
    q, k, v = torch.randn(3, 1, model.heads, length, model.head_dim).bfloat16()
    return seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), repeats)


def decode(model: Model, options: argparse.Namespace) -> None:
    bench = Bench(model, options, options.rows, options.depth + 1, model.layers)
    bench.fill(options.depth)
    nbytes = sum(layer.nbytes for layer in bench.layers)
    before = native.read_bandwidth(512)
    took = seconds(bench.step(options.depth, 1), bench.repeats)
    limit = (before + native.read_bandwidth(512)) / 2
    line = (
        f"decode {options.rows} x depth {options.depth}, {options.format}, {bench.layers[0].kernel}: "
        f"{took * 1e3:.2f} ms a step, {took / model.layers * 1e6:.1f} us a layer, "
        f"{nbytes / took / 1e9:.1f} GB/s of {limit / 1e9:.1f}, {nbytes / took / limit:.0%}"
    )
    del bench
    if options.torch:
        theirs = torch_decode(model, options.rows, options.depth, model.layers, options.repeats)
        line += f"; torch {theirs * 1e3:.2f} ms"
    print(line, flush=True)


def prompt(model: Model, options: argparse.Namespace, length: int) -> None:
    bench = Bench(model, options, 1, length, 1)
    took = seconds(bench.step(0, length), bench.repeats)
    work = 4 * model.head_dim * model.heads * length * (length + 1) / 2
    line = (
        f"prompt {length}, {options.format}, {bench.layers[0].kernel}: {took * 1e3:.2f} ms a layer, "
        f"{work / took / 1e12:.2f} TFLOP/s"
    )
    if options.torch:
        theirs = torch_prompt(model, length, options.repeats)
        line += f"; torch {theirs * 1e3:.2f} ms, {work / theirs / 1e12:.2f} TFLOP/s"
    print(line, flush=True)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen-1.8b")
    parser.add_argument("--format", choices=KV_FORMATS, default="float")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--depth", type=int, help="tokens before the one that is decoded")
    parser.add_argument("--rows", type=int, default=1, help="texts decoded together")
    parser.add_argument("--prompt", type=numbers, default=[], help="lengths of prompts, such as 512,2048")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: QWENKIT_THREADS or all CPUs")
    parser.add_argument("--torch", action="store_true", help="also measure torch")
    options = parser.parse_args()
    if options.threads:
        native.set_threads(options.threads)
    torch.set_num_threads(native.threads())
    print(f"{options.shape}, {native.threads()} threads, load average {os.getloadavg()[0]:.2f}")
    if options.depth is not None:
        decode(SHAPES[options.shape], options)
    for length in options.prompt:
        prompt(SHAPES[options.shape], options, length)


if __name__ == "__main__":
    main()
