"""Loading time and memory against plainly reading the same bytes.

    python bench/load.py --size qwen-1.8b                 # bf16
    python bench/load.py --size qwen-7b --format gptq4 --generate 3

Makes a random checkpoint of a published size in a temporary folder (removed afterwards), one tensor at a
time, then measures in fresh processes: reading the files, loading the model, and, if asked, tokens.
Reading copies every byte once out of the page cache, in one thread; loading maps, checks shapes and looks
at every weight for NaN.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from qwenkit.checkpoint import PlannedTensor, open_checkpoint, write_checkpoint
from qwenkit.checkpoint.empty_model import empty_model
from qwenkit.checkpoint.safetensors_writer import write_safetensors
from qwenkit.kernels import native
from qwenkit.model import Batch, DenseCache, ModelConfig
from qwenkit.quant import pack_model

GROUP = 128


def random_floats(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers repeated from a block of a million: the bytes vary, making them is quick."""
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(seed)).mul_(0.02).to(dtype)
    count = torch.Size(shape).numel()
    return block.repeat(-(-count // block.numel()))[:count].view(shape)


def random_words(shape: tuple[int, ...], seed: int) -> Tensor:
    count = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    block = torch.randint(-(2**31), 2**31 - 1, (2**20,), generator=generator).int()
    return block.repeat(-(-count // block.numel()))[:count].view(shape)


def constant(shape: tuple[int, ...], value: float, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, value, dtype=dtype)


def columns_to_groups(columns: int) -> Tensor:
    return torch.arange(columns, dtype=torch.int32) // GROUP


def plan(config: ModelConfig, packed: bool) -> Iterator[PlannedTensor]:
    dtype = torch.float16 if packed else torch.bfloat16
    model = empty_model(config)
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        module = model.get_submodule(name.rpartition(".")[0])
        shape = tuple(parameter.shape)
        if not packed or not isinstance(module, nn.Linear) or name == "lm_head.weight" or len(shape) == 1:
            yield PlannedTensor(name, shape, dtype, partial(random_floats, shape, dtype, seed))
            continue
        stem, (out, columns) = name.removesuffix("weight"), shape
        words, zeros, scales = (columns // 8, out), (columns // GROUP, out // 8), (columns // GROUP, out)
        for kind, kept, shape, read in (
            ("qweight", torch.int32, words, partial(random_words, words, seed)),
            ("qzeros", torch.int32, zeros, partial(constant, zeros, 0x77777777, torch.int32)),
            ("scales", torch.float16, scales, partial(constant, scales, 0.004, torch.float16)),
            ("g_idx", torch.int32, (columns,), partial(columns_to_groups, columns)),
        ):
            yield PlannedTensor(stem + kind, shape, kept, read)


def make(folder: Path, config: ModelConfig, packed: bool) -> None:
    tensors = list(plan(config, packed))
    if not packed:
        write_checkpoint(tensors, config, None, folder, layout="qwen-v1", dtype=torch.bfloat16)
        return
    folder.mkdir()
    shards: list[list[PlannedTensor]] = [[]]
    for tensor in tensors:
        if sum(t.nbytes for t in shards[-1]) + tensor.nbytes > 2_000_000_000:
            shards.append([])
        shards[-1].append(tensor)
    for n, shard in enumerate(shards, 1):
        write_safetensors(folder / f"model-{n:05d}-of-{len(shards):05d}.safetensors", shard)
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    described = config.to_v1_dict() | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(described))


def memory() -> dict[str, float]:
    """GB of this process: peak resident, resident now, and the part that is not a mapped file."""
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
    )
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    anonymous = next(line for line in rollup if line.startswith("Anonymous:")).split()[1]
    held = {"peak": status["VmHWM"].split()[0], "now": status["VmRSS"].split()[0], "anonymous": anonymous}
    return {name: int(kilobytes) * 1024 / 1e9 for name, kilobytes in held.items()}


def read(folder: Path) -> None:
    buffer = bytearray(2**24)
    start = time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    print(json.dumps({"seconds": time.perf_counter() - start}))


def load(folder: Path, dtype: torch.dtype, tokens: int, length: int) -> None:
    before = memory()
    start = time.perf_counter()
    model = open_checkpoint(folder).load_model(dtype=dtype)
    result: dict[str, object] = {"seconds": time.perf_counter() - start, "before": before, "loaded": memory()}
    if tokens:
        start = time.perf_counter()
        result["unpacked"] = pack_model(model)
        result |= {"pack": time.perf_counter() - start, "packed": memory()}
        torch.set_num_threads(1)  # as the engine does beside the kernels' own threads
        cache = DenseCache(model.shape.num_layers)
        with torch.inference_mode():
            prompt = torch.arange(length)[None]
            start = time.perf_counter()
            token = int(model(prompt, Batch.make(1, length, cache=cache), last=1)[0, -1].argmax())
            result["prefill"] = length / (time.perf_counter() - start)
            start = time.perf_counter()
            for _ in range(tokens):
                batch = Batch.make(1, 1, past=cache.length, cache=cache)
                token = int(model(torch.tensor([[token]]), batch)[0, -1].argmax())
        result |= {"per_token": (time.perf_counter() - start) / tokens, "generated": memory()}
        result["weights"] = sum(buffer.nbytes for buffer in model.buffers()) / 1e9
        result["bandwidth"] = native.read_bandwidth() / 1e9 if native.ready() else None
    print(json.dumps(result))


def child(what: str, folder: Path, *more: str) -> dict:
    run = subprocess.run(
        [sys.executable, __file__, "--child", what, str(folder), *more], check=True, stdout=subprocess.PIPE
    )
    return json.loads(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="qwen-1.8b", help="a name of qwenkit.model.SIZES")
    parser.add_argument("--format", choices=["bf16", "gptq4"], default="bf16")
    parser.add_argument("--layers", type=int, help="fewer layers than published, for a quick run")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--generate", type=int, default=0, help="tokens to decode after loading")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt before them")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    chosen = parser.parse_args()
    config = ModelConfig.from_name(chosen.size)
    if chosen.layers:
        config = ModelConfig(**{**vars(config), "num_layers": chosen.layers})
    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        folder = Path(temporary) / "model"
        make(folder, config, chosen.format == "gptq4")
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
        reads, loads = [], []
        child("read", folder)  # into the page cache
        for _ in range(chosen.repeat):
            reads.append(child("read", folder)["seconds"])
            loads.append(child("load", folder, str(chosen.generate), str(chosen.prompt)))
    report(chosen, size, reads, loads)


def report(chosen: argparse.Namespace, size: float, reads: list[float], loads: list[dict]) -> None:
    best = min(loads, key=lambda found: found["seconds"])
    times = [found["seconds"] for found in loads]
    print(f"{chosen.size} {chosen.format}: {size:.2f} GB, {torch.get_num_threads()} threads")
    for word, seconds in (("read", reads), ("load", times)):
        spread = ", ".join(f"{s:.2f}" for s in seconds)
        print(f"{word}  {min(seconds):6.2f} s  {size / min(seconds):5.2f} GB/s  (all: {spread})")
    print(f"ratio {min(times) / min(reads):.2f}")
    for moment in ("before", "loaded", "packed", "generated"):
        if moment in best:
            words = ", ".join(f"{name} {gigabytes:.2f}" for name, gigabytes in best[moment].items())
            print(f"{moment:9} GB: {words}")
    if chosen.generate:
        per_token = min(found["per_token"] for found in loads)
        print(f"pack   {min(found['pack'] for found in loads):.2f} s; not packed: {best['unpacked']}")
        print(f"prompt {max(found['prefill'] for found in loads):.0f} tok/s over {chosen.prompt} tokens")
        print(f"decode {per_token:.3f} s a token, {1 / per_token:.1f} tok/s")
        if best["bandwidth"]:
            reached = best["weights"] / per_token
            print(
                f"weights {best['weights']:.2f} GB a token, {reached:.1f} GB/s of "
                f"{best['bandwidth']:.1f} GB/s read by the same threads, {reached / best['bandwidth']:.0%}"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        if sys.argv[2] == "read":
            read(Path(sys.argv[3]))
        else:
            load(Path(sys.argv[3]), torch.bfloat16, int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
