"""Engines that behave as the tests tell them to, as source of adapter modules."""

from __future__ import annotations

from pathlib import Path

GOOD = """
import os, signal, sys, time

class Engine:
    def __init__(self, job):
        self.job = job
        print("an engine that talks to stdout")
        os.write(1, b"and below python too\\n")

    def facts(self):
        return {"engine": "scripted 1", "model": "m", "form": "f", "explain": "", "threads": 2,
                "load_s": 0.5, "attention": "a",
                "weight_bytes": 2_000_000_000, "parameters": 10, "linear_operations": 1_000_000_000,
                "output_operations": 0, "context_length": 4096, "vocabulary": 100}

    def run(self, prompts, new):
        count = len(prompts)
        first = len(prompts[0]) / SPEED
        return {"first_s": [first] * count, "total_s": first + (new - 1) / 10, "tokens": [new] * count}

    def kernels(self, rows):
        return {"kernels": {str(n): ["int4: AMX int8 tiles (4 layers)"] for n in rows},
                "peaks": {str(n): "int8_amx" for n in rows}}

    def limits(self, kinds):
        return {"read": 40e9, "peaks": {kind: 10e12 for kind in kinds}}

SPEED = 100
"""

RUNS = {
    "crash": "os.kill(os.getpid(), signal.SIGSEGV)",
    "exit": 'print("the last words", file=sys.stderr); sys.stderr.flush(); os._exit(3)',
    "abort": 'print("ASSERT(x) failed\\n#1 main\\n#2 _start", file=sys.stderr, flush=True); os.abort()',
    "hang": "time.sleep(60)",
    "raise": 'raise ValueError("no such format")',
    "short": 'return {"first_s": [1.0], "total_s": 2.0, "tokens": [1]}',
}


def good(folder: Path, name: str = "good", speed: int = 100) -> Path:
    """An engine that works: `speed` prompt tokens a second, 10 decoded tokens a second."""
    path = folder / f"{name}.py"
    path.write_text(GOOD.replace("SPEED = 100", f"SPEED = {speed}"))
    return path


def bad(folder: Path, how: str) -> Path:
    """An engine that loads, and then does one of RUNS when it should run."""
    path = folder / f"{how}.py"
    path.write_text(GOOD + f"\n\ndef run(self, prompts, new):\n    {RUNS[how]}\n\nEngine.run = run\n")
    return path


def garbage(folder: Path) -> Path:
    """A module that writes into the stream of answers, which no adapter should find."""
    path = folder / "garbage.py"
    path.write_text(GOOD + "\nfor number in range(3, 20):\n    try:\n        os.write(number, b'hello\\n')\n"
                    "    except OSError:\n        pass\n")  # fmt: skip
    return path


def later(folder: Path, act: str, runs: int) -> Path:
    """An engine that works for so many runs and then does `act`, with a process of its own beside it.

    Its process ids are written to processes.txt in `folder`.
    """
    path = folder / "later.py"
    path.write_text(
        GOOD
        + f"""
import subprocess
from pathlib import Path

helper = subprocess.Popen(["sleep", "60"])
Path({str(folder)!r}, "processes.txt").write_text(f"{{os.getpid()}} {{helper.pid}}")
answer, asked = Engine.run, []

def run(self, prompts, new):
    asked.append(new)
    if len(asked) > {runs}:
        {act}
    return answer(self, prompts, new)

Engine.run = run
"""
    )
    return path
