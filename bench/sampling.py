"""Choosing the tokens of a batch from 151,936 bfloat16 logits a row: the native kernels against plain torch.

    python bench/sampling.py [--rows N] [--repeats N] [--threads N]

"sure": a few tokens stand out as they do in text. "unsure": the nucleus is some thousand tokens. "flat":
noise of little spread, a nucleus of most of the vocabulary, which no trained model says. Medians over the
repeats, milliseconds for all rows; torch computes on one thread, as it does beside the kernels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from qwenkit.kernels import native, native_sampling, reference_sampling
from qwenkit.kernels.reference_sampling import Draw

VOCABULARY = 151_936
RULES = {
    "greedy": Draw(0),
    "temperature 1": Draw(0, 1.0),
    "top_p 0.8": Draw(0, 1.0, top_p=0.8),
    "top_k 20, top_p 0.8, temperature 0.7": Draw(0, 0.7, top_k=20, top_p=0.8),
    "min_p 0.05": Draw(0, 1.0, min_p=0.05),
}


def shapes(rows: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(rows, VOCABULARY, generator=g)
    few = torch.randint(0, VOCABULARY, (rows, 30), generator=g)
    heights = torch.randn(rows, 30, generator=g) * 3 + 14
    return {
        "sure": (noise * 2.0).scatter(1, few, heights).bfloat16(),
        "unsure": (noise * 2.5).bfloat16(),
        "flat": (noise * 0.5).bfloat16(),
    }


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        native.set_threads(options.threads)
    torch.set_num_threads(1)
    print(f"{native.isa()}, {native.threads()} threads, {options.rows} rows")
    print(f"{'logits':8} {'rule':38} {'native ms':>9} {'torch ms':>9}")
    for shape, logits in shapes(options.rows).items():
        for name, rule in RULES.items():
            fields = (rule.temperature, rule.top_k, rule.top_p, rule.min_p)
            uniforms = torch.rand(options.rows, dtype=torch.float64).tolist()
            draws = [Draw(row, *fields, uniform) for row, uniform in enumerate(uniforms)]
            ours = milliseconds(lambda: native_sampling.choose(logits, draws), options.repeats)  # noqa: B023
            torchs = milliseconds(lambda: reference_sampling.choose(logits, draws[:4]), 3) * options.rows / 4  # noqa: B023
            print(f"{shape:8} {name:38} {ours:9.2f} {torchs:9.1f}")
        wanted = [(row, 7, 5) for row in range(options.rows)]
        ours = milliseconds(lambda: native_sampling.log_probabilities(logits, wanted), options.repeats)  # noqa: B023
        torchs = milliseconds(lambda: reference_sampling.log_probabilities(logits, wanted), 3)  # noqa: B023
        print(f"{shape:8} {'log probabilities, 5 likeliest':38} {ours:9.2f} {torchs:9.1f}")


if __name__ == "__main__":
    main()
