"""transformers: the generate method of its own Qwen2 model, bfloat16, eager.

Runs in the python that has transformers and torch.
"""

from __future__ import annotations

import importlib
import time
from typing import Any


class Engine:
    """job: model (bfloat16 folder in the Qwen2 layout), threads."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch

        transformers: Any = importlib.import_module("transformers")
        self.torch, self.transformers = torch, transformers
        torch.set_num_threads(job["threads"])
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        start = time.perf_counter()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
        self.model.eval()
        self.load_s = time.perf_counter() - start
        self.model.generation_config = transformers.GenerationConfig(pad_token_id=0)

    def facts(self) -> dict[str, Any]:
        return {
            "engine": f"transformers {self.transformers.__version__}, torch {self.torch.__version__}",
            "form": "bfloat16",
            "load_s": self.load_s,
            "notes": [f"attention: {self.model.config._attn_implementation}"],
        }

    def run(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """Greedy. Seconds to the first token, which all prompts get together, and to the end of all."""
        clock = _Clock()
        ids = self.torch.tensor(prompts)
        with self.torch.inference_mode():
            clock.start = time.perf_counter()
            out = self.model.generate(
                ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, use_cache=True,
                attention_mask=self.torch.ones_like(ids), logits_processor=[clock],
            )  # fmt: skip
            total = time.perf_counter() - clock.start
        count = out.shape[1] - ids.shape[1]
        return {"first_s": [clock.first] * len(prompts), "total_s": total, "tokens": [count] * len(prompts)}


class _Clock:
    """A processor of logits that changes nothing and notes when the first ones come."""

    start = 0.0
    first: float | None = None

    def __call__(self, ids: Any, scores: Any) -> Any:
        if self.first is None:
            self.first = time.perf_counter() - self.start
        return scores
