"""Greedy tokens of vLLM on the CPU for prompts given as token ids; run by the Python that has vllm.

usage: vllm_greedy.py N < jobs.json > tokens.json; a job has folder, dtype and prompts
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def main(count: int) -> None:
    answers_to = os.dup(1)
    os.dup2(2, 1)  # vLLM logs to stdout
    import vllm

    answers = []
    # ignore_eos alone: min_tokens would forbid the tokens that end a text.
    wanted = vllm.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    for job in json.load(sys.stdin):
        engine = vllm.LLM(
            model=job["folder"], skip_tokenizer_init=True, enforce_eager=True, max_model_len=512,
            max_num_seqs=8, enable_prefix_caching=False, disable_log_stats=True, dtype=job["dtype"],
        )  # fmt: skip
        done = engine.generate([{"prompt_token_ids": ids} for ids in job["prompts"]], wanted, use_tqdm=False)
        answers.append([list(output.outputs[0].token_ids) for output in done])
        del engine
    os.write(answers_to, json.dumps(answers).encode())


if __name__ == "__main__":
    main(int(sys.argv[1]))
