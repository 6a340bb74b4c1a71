"""Native linear kernels on the layer shapes of qwen-1.8b, against what this machine can do.

    python bench/kernels.py [--threads N] [--repeats N] [--json FILE] [--layers N] [--rows N ...]

Decode rows read a whole stack of layers (more than any cache), so GB/s is memory; the bandwidth is measured
before and after every repeat and the share is taken against their mean. TOP/s are 2 * rows * weights / time,
their share against the peak measured before and after (products of zeros in registers: an upper bound).
Linears only: no attention, norm or output layer. Medians of the repeats, with the lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from qwenkit.kernels import native
from qwenkit.kernels.native import Activations, AffineWeight, Bf16Weight

# Qwen 1.8B: q/k/v, attention output, up and gate together, down; 24 layers.
SHAPES = ((6144, 2048), (2048, 2048), (11008, 2048), (2048, 5504))
LAYERS = 24

Stack = list[list[Callable[[Tensor], Tensor]]]


@dataclass
class Row:
    """One line of the report. share: of the measured limit; rate: GB/s or TOP/s."""

    weights: str
    rows: int
    activations: str
    kernel: str
    milliseconds: float
    tokens_per_second: float
    unit: str
    rate: float
    share: float
    lowest_share: float
    highest_share: float


def build(weights: str, layers: int, activations: Activations) -> tuple[Stack, int, Callable[[int], str]]:
    """Random packed layers, their bytes, and what names the kernel for a number of rows."""
    stack: Stack = []
    nbytes = 0
    path: Callable[[int], str] = lambda rows: str(native.extension().bf16_path(rows))  # noqa: E731
    for _ in range(layers):
        layer: list[Callable[[Tensor], Tensor]] = []
        for out, columns in SHAPES:
            if weights == "bf16":
                plain = Bf16Weight.pack(torch.randn(out, columns).bfloat16())
                layer.append(plain.multiply)
                nbytes += plain.packed.numel()
                continue
            bits = int(weights.removeprefix("int"))
            packed = AffineWeight.pack(
                torch.randint(0, 1 << bits, (out, columns), dtype=torch.uint8),
                (torch.rand(columns // 128, out) * 0.01 + 0.001).half(),
                bits=bits,
                group_of_column=torch.arange(columns) // 128,
            )
            layer.append(lambda x, w=packed: w.multiply(x, activations))  # type: ignore[misc]
            nbytes += packed.packed.numel()
            path = lambda rows, w=packed: w.path(rows, activations)  # type: ignore[misc] # noqa: E731
        stack.append(layer)
    return stack, nbytes, path


def seconds(stack: Stack, inputs: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    for layer in stack:
        for multiply, x in zip(layer, inputs, strict=True):
            multiply(x)
    return time.perf_counter() - start


def measure(weights: str, rows: int, layers: int, repeats: int, activations: Activations, unit: str) -> Row:
    stack, nbytes, path = build(weights, layers, activations)
    inputs = [torch.randn(rows, columns).bfloat16() for _, columns in SHAPES]
    operations = 2 * rows * layers * sum(out * columns for out, columns in SHAPES)
    amx = native.isa() == "amx"
    kind = ("bf16_amx" if activations == "16bit" or weights == "bf16" else "int8_amx") if amx else "int8_vnni"
    if native.isa() == "avx2":
        kind = "fma"

    def limit() -> float:
        return native.read_bandwidth(512) if unit == "GB/s" else native.peak(kind)

    seconds(stack, inputs)
    times, shares = [], []
    for _ in range(repeats):
        before = limit()
        took = seconds(stack, inputs)
        rate = (nbytes if unit == "GB/s" else operations) / took
        times.append(took)
        shares.append(rate / ((before + limit()) / 2))
    took = statistics.median(times)
    whole = took * LAYERS / layers
    rate = (nbytes / 1e9 if unit == "GB/s" else operations / 1e12) / took
    return Row(
        weights,
        rows,
        "bf16" if weights == "bf16" else activations,
        path(rows),
        whole * 1e3,
        rows / whole,
        unit,
        rate,
        statistics.median(shares),
        min(shares),
        max(shares),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, help="default: QWENKIT_THREADS or all CPUs")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--layers", type=int, default=LAYERS, help="layers of the stack that is read")
    parser.add_argument("--rows", type=int, nargs="+", help="only these of the numbers of rows")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args()
    if options.threads:
        native.set_threads(options.threads)
    print(native.explain())
    print(f"load average before: {os.getloadavg()[0]:.2f} (other work on the machine spoils every number)")
    print(f"read bandwidth {native.read_bandwidth(1024) / 1e9:.1f} GB/s")
    print(f"{'weights':>7} {'rows':>5} {'x':>5} {'ms/pass':>8} {'tok/s':>8} {'rate':>12} {'share':>6} spread")
    plan: list[tuple[str, int, Activations, str]] = [
        *(("int4", rows, "int8", "GB/s") for rows in (1, 2, 4, 8, 16, 32)),
        ("int8", 1, "int8", "GB/s"),
        ("bf16", 1, "int8", "GB/s"),
        ("bf16", 32, "int8", "GB/s"),
        *(("int4", rows, mode, "TOP/s") for mode in ("int8", "16bit") for rows in (512, 2048)),
        ("int8", 512, "int8", "TOP/s"),
        ("bf16", 512, "int8", "TOP/s"),
    ]
    done = []
    for weights, rows, activations, unit in plan:
        if options.rows and rows not in options.rows:
            continue
        layers = options.layers if unit == "GB/s" else min(2, options.layers)
        row = measure(weights, rows, layers, options.repeats, activations, unit)
        done.append(row)
        print(
            f"{row.weights:>7} {row.rows:>5} {row.activations:>5} {row.milliseconds:>8.2f} "
            f"{row.tokens_per_second:>8.1f} {row.rate:>6.2f} {row.unit:<5} {row.share:>6.0%} "
            f"{row.lowest_share:>5.0%}-{row.highest_share:<5.0%} {row.kernel}",
            flush=True,
        )
    print(f"load average after: {os.getloadavg()[0]:.2f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump([asdict(row) for row in done], file, indent=1)


if __name__ == "__main__":
    main()
