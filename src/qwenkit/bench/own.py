"""qwenkit behind the worker's protocol: loaded and asked through the public `Qwen`, as anyone would.

Loaded by path in a process of its own, like the adapters in peers/.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch

import qwenkit
from qwenkit.bench import cost
from qwenkit.core import ContextLengthError, QwenkitError
from qwenkit.engine import Qwen
from qwenkit.engine.paged_cache import BLOCK_TOKENS
from qwenkit.kernels import native
from qwenkit.model import ModelConfig


class Engine:
    """job: model or shape; weights, kv_cache, threads (each may be None); device; offline; context: longest
    sequence that will be asked; sequences: most at once; cache_tokens: most tokens held at once.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self.threads = int(job["threads"] or len(os.sched_getaffinity(0)))
        torch.set_num_threads(self.threads)
        if native.built():
            native.set_threads(self.threads)
        start = time.perf_counter()
        self.qwen = self._load(job)
        self.load_s = time.perf_counter() - start
        _check(self.qwen.config, job["context"], self.qwen.name)

    @staticmethod
    def _load(job: dict[str, Any]) -> Qwen:
        options: dict[str, Any] = {
            "speculate": "off",  # how well replies can be guessed is a property of texts, not of this machine
            "max_running": max(1, job["sequences"]),
            "cache_tokens": job["cache_tokens"] + BLOCK_TOKENS * job["sequences"],
        }
        if job["kv_cache"] not in (None, "bf16"):
            options["kv_cache"] = job["kv_cache"]
        if job["shape"] is not None:
            from qwenkit.bench.shapes import random_qwen

            # Before numbers are drawn for minutes.
            _check(ModelConfig.from_name(job["shape"]), job["context"], job["shape"])
            return random_qwen(job["shape"], job["weights"] or "bf16", **options)
        if job["weights"] is not None:
            options["weights"] = job["weights"]
        return Qwen.load(
            job["model"], device=job["device"], offline=job["offline"], progress=False, **options
        )

    def facts(self) -> dict[str, Any]:
        """What was loaded and what a token of it costs."""
        config, model = self.qwen.config, self.qwen.model
        return {
            "engine": f"qwenkit {qwenkit.__version__}, torch {torch.__version__}",
            "model": self.qwen.name,
            "form": self.qwen.quantization,
            "explain": self.qwen.explain(),
            "threads": self.threads,
            "attention": self.qwen.engine.cache.layers[0].kernel,
            "load_s": self.load_s,
            "weight_bytes": cost.weight_bytes(model),
            "parameters": config.parameter_count,
            "linear_operations": cost.linear_operations(config),
            "output_operations": cost.output_operations(config),
            "context_length": config.context_length,
            "vocabulary": min(self.qwen.tokenizer.special_tokens.values(), default=len(self.qwen.tokenizer)),
        }

    def kernels(self, rows: list[int]) -> dict[str, Any]:
        """For each number of rows the kernels that multiply it, and the peak that bounds the first."""
        named = {count: cost.kernels(self.qwen.model, count) for count in rows}
        return {
            "kernels": {str(count): names for count, names in named.items()},
            "peaks": {str(count): cost.peak_kind(names[0]) for count, names in named.items()},
        }

    def run(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """Greedy, end tokens ignored. Seconds to each prompt's first token and to the end of all."""
        start = time.perf_counter()
        done = self.qwen.generate_ids(prompts, temperature=0, max_tokens=new, ignore_eos=True)
        total = time.perf_counter() - start
        reused = sum(completion.usage.cached_tokens for completion in done)
        if reused:
            raise QwenkitError(f"{reused} tokens of the prompts were not read but reused.")
        return {
            "first_s": [completion.timings.ttft_s for completion in done],
            "total_s": total,
            "tokens": [len(completion.token_ids) for completion in done],
        }

    def limits(self, kinds: list[str]) -> dict[str, Any]:
        """Bytes the machine reads and operations it does a second now, with these threads."""
        if not native.ready():
            return {"read": None, "peaks": {}}
        return {"read": native.read_bandwidth(), "peaks": {kind: native.peak(kind) for kind in kinds}}


def _check(config: ModelConfig, context: int, name: str) -> None:
    if context > config.context_length:
        raise ContextLengthError(
            f"The benchmark needs {context} tokens of context; {name} has {config.context_length}.",
            "Lower --prompt, --depth or --decode.",
        )
