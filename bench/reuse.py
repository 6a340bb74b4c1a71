"""What a prompt costs whose beginning the cache still holds: first tokens of two requests that share it.

    python bench/reuse.py [MODEL | --shape NAME --weights W] [--kv-cache F] [--shared N] [--own N]

Each round draws a new beginning of `--shared` tokens; two requests follow with `--own` tokens of their own.
"""

from __future__ import annotations

import argparse
import random
import statistics

from qwenkit import Qwen
from qwenkit.bench.shapes import random_qwen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--shape", help="random weights of this size instead of a model")
    parser.add_argument("--weights", default="int4", help="of the shape")
    parser.add_argument("--kv-cache", default="auto")
    parser.add_argument("--shared", type=int, default=2048)
    parser.add_argument("--own", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    settings = {"kv_cache": options.kv_cache, "cache_tokens": 2 * (options.shared + options.own) + 256}
    if options.shape:
        model = random_qwen(options.shape, options.weights, **settings)
    else:
        model = Qwen.load(options.model, **settings)
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(1000, 100_000) for _ in range(count)]

    def first_token(prompt: list[int]) -> tuple[float, int]:
        done = model.generate_ids([prompt], temperature=0, max_tokens=1, ignore_eos=True)[0]
        return done.timings.ttft_s, done.usage.cached_tokens

    first_token(tokens(64))  # warms up
    shares = []
    for _ in range(options.rounds):
        shared = tokens(options.shared)
        (first, _), (second, cached) = (first_token(shared + tokens(options.own)) for _ in range(2))
        shares.append(second / first)
        print(f"first {first:.3f} s, second {second:.3f} s with {cached} tokens reused: {second / first:.1%}")
    print(f"median {statistics.median(shares):.1%}")


if __name__ == "__main__":
    main()
