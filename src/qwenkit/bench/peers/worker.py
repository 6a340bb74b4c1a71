"""Runs one engine in a process of its own: one line of JSON in, one line of JSON out.

Started as a program by `process.py`, with the path of an adapter, in the python that has the engine: it knows
the standard library only. An adapter is a module with a class `Engine`, made of a job (a dictionary) by
"load", whose methods answer all other calls with a dictionary, and perhaps a function `prepare`.

Whatever the engine prints goes to stderr; stdout carries answers alone.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Worker:
    """Answers calls with the adapter at `path`; an exception becomes an answer that says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter: ModuleType | None = None
        self.engine: Any = None

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"ok": True, **self._call(asked.pop("call"), asked)}
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is its answer
            traceback.print_exc()
            problem = getattr(error, "problem", None) or f"{type(error).__name__}: {error}"
            return {"ok": False, "problem": problem, "remedy": getattr(error, "remedy", "")}

    def _call(self, call: str, asked: dict[str, Any]) -> dict[str, Any]:
        if call == "memory":
            return {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        if self.adapter is None:
            self.adapter = self._import()
        if call == "prepare":
            result: dict[str, Any] = self.adapter.prepare(**asked) or {}
            return result
        if call == "load":
            self.engine = self.adapter.Engine(asked["job"])
            return dict(self.engine.facts())
        return dict(getattr(self.engine, call)(**asked))

    def _import(self) -> ModuleType:
        # Under a name of its own: an adapter called transformers.py must not pose as the library.
        spec = importlib.util.spec_from_file_location(f"qwenkit_adapter_{self.path.stem}", self.path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{self.path} is no python module")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def main(adapter: str) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # also while stopped
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    here = Path(__file__).resolve().parent
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != here]
    worker = Worker(Path(adapter))
    for line in sys.stdin:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
