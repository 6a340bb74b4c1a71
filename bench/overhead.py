"""What a decoding step costs outside the kernels: scheduling, batches, streams of random numbers, text.

    python bench/overhead.py [MODEL] [--tokens N] [--sequences N]

A step lasts from one call of the scheduler to the next. Kernels are the blocks, the output layer and the
choice of tokens, each a compiled call. Minimum and median over the steps; guessing ahead is off. What other
processes take of the cores lengthens both parts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from qwenkit import Qwen
from qwenkit.engine import sampler


class Clock:
    """Seconds of every step, and of them inside the functions that `timed` made."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self._inside = 0.0
        self._begun = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = function(*args, **kwargs)
            self._inside += time.perf_counter() - begun
            return result

        return run

    def stepping(self, schedule: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            now = time.perf_counter()
            self.steps.append((now - self._begun, self._inside))
            self._begun, self._inside = now, 0.0
            return schedule()

        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--sequences", type=int, default=1)
    options = parser.parse_args()
    model = Qwen.load(options.model, speculate="off")
    stack = model.engine._runner.stack
    if stack is None:
        raise SystemExit("Not all of this model runs on the compiled kernels.")
    clock = Clock()
    stack.run = clock.timed(stack.run)  # type: ignore[method-assign]
    model.model.lm_head.forward = clock.timed(model.model.lm_head.forward)
    sampler.choose_tokens = clock.timed(sampler.choose_tokens)
    model.engine._schedule = clock.stepping(model.engine._schedule)  # type: ignore[method-assign]
    prompts = [f"The story of bicycle number {i}:" for i in range(options.sequences)]
    for _ in range(2):  # the first run warms up
        clock.steps.clear()
        model.generate(prompts, max_tokens=options.tokens, ignore_eos=True)
    steps = clock.steps[len(clock.steps) // 10 : -1]  # without the prompt and what led up to it
    for name, pick in (("least", min), ("median", statistics.median)):
        whole, inside = pick(a for a, _ in steps) * 1e3, pick(b for _, b in steps) * 1e3
        outside = pick(a - b for a, b in steps) * 1e3
        print(
            f"{name}: step {whole:.2f} ms, kernels {inside:.2f}, outside {outside:.2f}: {outside / whole:.1%}"
        )


if __name__ == "__main__":
    main()
