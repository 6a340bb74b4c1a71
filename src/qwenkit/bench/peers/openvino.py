"""OpenVINO GenAI: its continuous-batching pipeline on the CPU, one request or many.

Runs in the python that has openvino_genai; converting a model also needs optimum-intel there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

_SPLIT = 512  # most tokens it reads in one step


def prepare(source: str, target: str, weights: str) -> None:
    """Convert the bfloat16 folder `source`: int4, groups of 128 and an int8 output layer; int8; or bf16."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    config: Any = None  # "do not compress", where the option below is False
    if weights == "int4":
        config = OVWeightQuantizationConfig(bits=4, sym=True, group_size=128, ratio=1.0)
    elif weights == "int8":
        config = OVWeightQuantizationConfig(bits=8, sym=True)
    model = OVModelForCausalLM.from_pretrained(
        source, export=True, compile=False, load_in_8bit=None if config else False, quantization_config=config
    )
    model.save_pretrained(target)


class Engine:
    """job: model (folder), threads, kv_cache, cache_tokens, sequences, setting ("bf16" or "int8").

    setting: "int8" makes it quantize activations, which decodes faster and reads prompts slower.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        import openvino
        import openvino_genai as genai

        self.genai, self.openvino, self.job = genai, openvino, job
        scheduler = genai.SchedulerConfig()
        scheduler.dynamic_split_fuse = True
        scheduler.max_num_batched_tokens = _SPLIT
        scheduler.max_num_seqs = max(1, job["sequences"])
        scheduler.enable_prefix_caching = False
        scheduler.num_kv_blocks = job["cache_tokens"] // 32 + 2 * job["sequences"] + 8
        properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": job["threads"]}
        if job["setting"] == "int8":
            properties |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}
        if job["kv_cache"] is not None:
            properties["KV_CACHE_PRECISION"] = {"int8": "u8", "int4": "u4"}.get(
                job["kv_cache"], job["kv_cache"]
            )
        start = time.perf_counter()
        self.pipe = genai.ContinuousBatchingPipeline(job["model"], scheduler, "CPU", properties)
        self.load_s = time.perf_counter() - start
        self.asked = 0
        self.properties = properties

    def facts(self) -> dict[str, Any]:
        nbytes, kinds = _weights(self.openvino, Path(self.job["model"]) / "openvino_model.xml")
        return {
            "engine": f"openvino {self.openvino.get_version()}, openvino-genai {self.genai.__version__}",
            "form": ", ".join(kinds),
            "load_s": self.load_s,
            "weight_bytes": nbytes,
            "notes": [f"{name}={value}" for name, value in self.properties.items()],
        }

    def run(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """Greedy. Seconds to each prompt's first token and to the end of all."""
        import numpy as np

        config = self.genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new
        config.ignore_eos = True
        config.eos_token_id, config.stop_token_ids = 0, {0}  # ignored, but a folder without one stands for -1
        config.do_sample = False
        tensors = [self.openvino.Tensor(np.array([ids], dtype=np.int64)) for ids in prompts]
        first_s: list[float | None] = [None] * len(prompts)
        tokens = [0] * len(prompts)
        start = time.perf_counter()
        handles = []
        for tensor in tensors:
            self.asked += 1
            handles.append(self.pipe.add_request(self.asked, tensor, config))
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
            now = time.perf_counter() - start
            for row, handle in enumerate(handles):
                while handle.can_read():
                    tokens[row] += sum(len(output.generated_ids) for output in handle.read().values())
                    first_s[row] = first_s[row] or now
        return {"first_s": first_s, "total_s": time.perf_counter() - start, "tokens": tokens}


def _weights(openvino: Any, path: Path) -> tuple[int, list[str]]:
    """Bytes of constants that products read, and their types; a table only looked up (embedding) is not."""
    model = openvino.Core().read_model(path)
    total, kinds = 0, set()
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_output_shape(0) is None:
            continue
        size = node.get_byte_size() if hasattr(node, "get_byte_size") else node.data.nbytes
        if size < 1 << 12:
            continue
        users = _users(node)
        if "MatMul" in users or "Gather" not in users:
            total += size
            if "MatMul" in users and size > 1 << 20:
                kinds.add(node.get_element_type().get_type_name())
    return total, sorted(kinds)


def _users(node: Any) -> set[str]:
    """Types of the operations a constant reaches, through those that only decompress it."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        for output in waiting.pop().outputs():
            for user in output.get_target_inputs():
                kind = user.get_node().get_type_name()
                if kind in ("Convert", "Multiply", "Subtract", "Reshape", "Transpose"):
                    waiting.append(user.get_node())
                else:
                    found.add(kind)
    return found
