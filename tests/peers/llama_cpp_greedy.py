"""Greedy tokens of llama.cpp for prompts given as token ids; run by the Python that has llama-cpp-python.

usage: llama_cpp_greedy.py MODEL.gguf WORK_FOLDER N < prompts.json > tokens.json

The model is first re-exported to float32: the quantized path of llama.cpp rounds activations to 8 bits,
so only the float32 graph is an oracle for the weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp


def main(source: Path, folder: Path, count: int) -> None:
    exact = folder / f"{source.stem}-f32.gguf"
    if not exact.exists():
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
        params.allow_requantize = True
        partial = exact.with_suffix(".partial")
        if llama_cpp.llama_model_quantize(str(source).encode(), str(partial).encode(), params):
            raise SystemExit(f"llama.cpp could not re-export {source}")
        partial.rename(exact)
    model = llama_cpp.Llama(
        str(exact), n_ctx=1024, n_threads=1, n_threads_batch=1, verbose=False, flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, logits_all=True,
    )  # fmt: skip
    results = []
    for prompt in json.load(sys.stdin):
        model.reset()
        model.eval(prompt)
        tokens, margins = [], []
        for _ in range(count):
            row = model.scores[model.n_tokens - 1]
            first, second = row.argpartition(-2)[-2:][::-1]
            if row[second] > row[first]:
                first, second = second, first
            tokens.append(int(first))
            margins.append(float(row[first] - row[second]))
            model.eval([int(first)])
        results.append({"tokens": tokens, "margins": margins})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
