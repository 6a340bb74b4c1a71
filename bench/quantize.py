"""Time and memory of quantizing blocks of a published size, and what the whole model would take.

    python bench/quantize.py --size qwen-7b --layers 2
    python bench/quantize.py --size qwen-72b --layers 1 --samples 32

Makes a random checkpoint with so many layers of that size, and a vocabulary of single bytes, in a temporary
folder (removed afterwards); `qwenkit.quantize.quantize` runs on it in a fresh process, all of it: reading,
calibrating, rounding, writing, measuring. The memory is that process's peak.
"""

from __future__ import annotations

import argparse
import base64
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from qwenkit.checkpoint import open_checkpoint, write_checkpoint
from qwenkit.core import GenerationConfig
from qwenkit.model import SIZES, CausalLM
from qwenkit.quant.gptq_rounding import Rounding
from qwenkit.quantize import Settings, Watch, quantize
from qwenkit.text import Tokenizer

SPECIALS = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
VOCABULARY = 512


class Layers(Watch):
    """The seconds of each layer."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def layer(self, number: int, errors: Mapping[str, float], seconds: float) -> None:
        self.seconds.append(seconds)
        print(f"layer {number + 1}: {seconds:.1f} s", flush=True)


def make(folder: Path, size: str, layers: int) -> None:
    """A checkpoint of that size's blocks in bfloat16."""
    config = replace(SIZES[size], num_layers=layers, vocab_size=VOCABULARY)
    ranks = folder.with_name("bytes.tiktoken")
    lines = (f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    ranks.write_text("".join(lines))
    write_checkpoint(
        CausalLM(config).initialize(seed=0),
        config,
        Tokenizer.from_tiktoken(ranks, special_tokens=SPECIALS),
        folder,
        layout="qwen-v1" if config.architecture == "qwen" else "qwen2",
        dtype=torch.bfloat16,
        generation=GenerationConfig(stop_token_ids=(256, 258)),
    )


def run(source: Path, out: Path, settings: Settings, results: Connection) -> None:
    """In the fresh process: the seconds of each layer and of all, and the peak in bytes."""
    watch, begun = Layers(), time.perf_counter()
    quantize(open_checkpoint(source), out, settings, watch=watch, max_increase=float("inf"))
    total = time.perf_counter() - begun
    results.send((watch.seconds, total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="qwen-7b")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--method", choices=("gptq", "rtn"), default="gptq")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--group-size", type=int, default=128)
    options = parser.parse_args()
    settings = Settings(
        method=options.method,
        rounding=Rounding(group=options.group_size),
        samples=options.samples,
        length=options.length,
    )
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        maker = spawn.Process(target=make, args=(source, options.size, options.layers))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit("The checkpoint could not be made.")
        here, there = spawn.Pipe(duplex=False)
        runner = spawn.Process(target=run, args=(source, Path(folder) / "out", settings, there))
        runner.start()
        there.close()
        try:
            seconds, total, peak = here.recv()
        except EOFError:
            runner.join()
            raise SystemExit(f"Quantizing ended with exit code {runner.exitcode}.") from None
        runner.join()
    whole = SIZES[options.size].num_layers
    median = statistics.median(seconds)
    print(f"{options.layers} layers: {total:.0f} s in all, peak {peak / 1e9:.2f} GB")
    print(f"{options.size}: {whole} layers of {median:.0f} s are {whole * median / 3600:.1f} hours")


if __name__ == "__main__":
    main()
