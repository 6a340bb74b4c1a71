"""llama.cpp and ik_llama.cpp, through the C interface of llama-cpp-python and ik-llama-cpp-python.

The loop is that of llama-bench and llama-batched-bench: batches of 2048 tokens computed in pieces of 512,
then one step after another for all sequences together. Runs in the python that has the library.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import time
from typing import Any

import numpy as np

_BATCH = 2048
_QUANTIZED = {"int8": 8, "int4": 2}  # ggml_type Q8_0 and Q4_0


class Engine:
    """job: library ("llama_cpp" or "ik_llama_cpp"), model (.gguf), threads, kv_cache."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.ik = job["library"] == "ik_llama_cpp"
        self.api = importlib.import_module("ik_llama_cpp._ctypes_api" if self.ik else "llama_cpp")
        self.job = job
        self.api.llama_backend_init()
        parameters = self.api.llama_model_default_params()
        if self.ik:
            parameters.repack_tensors = True  # its option -rtr, without which it is slow
            parameters.use_mmap = False
        start = time.perf_counter()
        self.model = self.api.llama_model_load_from_file(str(job["model"]).encode(), parameters)
        if not self.model:
            raise RuntimeError(f"the library does not load {job['model']}")
        self.load_s = time.perf_counter() - start
        self.context: Any = None
        self.batch: Any = None
        self.size = (0, 0)

    def facts(self) -> dict[str, Any]:
        package = "ik-llama-cpp-python" if self.ik else "llama-cpp-python"
        words = ctypes.create_string_buffer(256)
        self.api.llama_model_desc(self.model, words, len(words))
        engine = f"{package} {importlib.metadata.version(package)}"
        notes = []
        if not self.ik:
            flags = self.api.llama_print_system_info().decode()
            notes.append("built with " + ", ".join(
                one.split("=")[0].replace("CPU :", "").strip() for one in flags.split("|") if "= 1" in one
            ))  # fmt: skip
        return {"engine": engine, "form": words.value.decode(), "load_s": self.load_s, "notes": notes}

    def run(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """Greedy. Seconds to each prompt's first token and to the end of all."""
        count, length = len(prompts), max(map(len, prompts)) + new
        self._room(count, length)
        queue = [(token, at, row) for row, ids in enumerate(prompts) for at, token in enumerate(ids)]
        first_s = [0.0] * count
        last = [0] * count
        start = time.perf_counter()
        for begin in range(0, len(queue), _BATCH):
            piece = queue[begin : begin + _BATCH]
            wanted = [row if at + 1 == len(prompts[row]) else None for _, at, row in piece]
            for ended, token in self._decode(piece, wanted).items():
                last[ended] = token
                first_s[ended] = time.perf_counter() - start
        for step in range(new - 1):
            piece = [(last[row], len(prompts[row]) + step, row) for row in range(count)]
            found = self._decode(piece, list(range(count)))
            last = [found[row] for row in range(count)]
        return {"first_s": first_s, "total_s": time.perf_counter() - start, "tokens": [new] * count}

    def _room(self, count: int, length: int) -> None:
        """An empty cache for `count` sequences of `length` tokens."""
        if self.context is not None and self.size == (count, length):
            if self.ik:
                self.api.llama_kv_cache_clear(self.context)
            else:
                self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
            return
        if self.context is not None:
            self.api.llama_batch_free(self.batch)
            self.api.llama_free(self.context)
        parameters = self.api.llama_context_default_params()
        parameters.n_ctx = count * -(-length // 256) * 256  # it wants multiples
        parameters.n_seq_max = count
        parameters.n_batch, parameters.n_ubatch = _BATCH, 512
        parameters.n_threads = parameters.n_threads_batch = self.job["threads"]
        if self.ik:
            parameters.flash_attn = count == 1  # it aborts on some batches: GGML_ASSERT(S > 0)
        if self.job["kv_cache"] in _QUANTIZED:
            parameters.type_k = parameters.type_v = _QUANTIZED[self.job["kv_cache"]]
        self.context = self.api.llama_init_from_model(self.model, parameters)
        if not self.context:
            raise RuntimeError(f"no context for {count} sequences of {length} tokens")
        self.batch = self.api.llama_batch_init(_BATCH, 0, 1)
        self.size = (count, length)

    def _decode(self, piece: list[tuple[int, int, int]], wanted: list[int | None]) -> dict[int, int]:
        """Run (token, position, sequence) entries; the likeliest next token of each sequence in `wanted`."""
        batch = self.batch
        batch.n_tokens = len(piece)
        for i, (token, position, row) in enumerate(piece):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = wanted[i] is not None
        code = self.api.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode gave {code}")
        found = {}
        for i, ending in enumerate(wanted):
            if ending is not None:
                scores = self.api.llama_get_logits_ith(self.context, i)
                found[ending] = int(np.ctypeslib.as_array(scores, (self.job["vocabulary"],)).argmax())
        return found
