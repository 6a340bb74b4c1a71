"""Threads, concurrency, fork, forced instruction sets and the machine's yardsticks."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native
from qwenkit.kernels.native import AffineWeight, Bf16Weight

built = pytest.mark.skipif(not native.built(), reason="the native kernels are not built in this installation")


def sample() -> tuple[AffineWeight, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (300, 512), generator=g, dtype=torch.uint8)
    weight = AffineWeight.pack(
        codes, torch.full((4, 300), 0.01).half(), bits=4, group_of_column=torch.arange(512) // 128
    )
    return weight, torch.randn(40, 512, generator=g)


def test_results_do_not_depend_on_threads(isa):
    weight, x = sample()
    plain = Bf16Weight.pack(torch.randn(300, 512).bfloat16())
    before, results = native.threads(), []
    try:
        for count in (1, 2, 3):
            native.set_threads(count)
            assert native.threads() == count
            results.append([f(x[:n]) for n in (1, 40) for f in (weight.multiply, plain.multiply)])
    finally:
        native.set_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_concurrent_callers(isa):
    weight, x = sample()
    want = {n: weight.multiply(x[:n]) for n in (1, 7, 40)}

    def caller(seed: int) -> bool:
        return all(torch.equal(weight.multiply(x[:n]), want[n]) for _ in range(30) for n in want)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(caller, range(12)))


def test_threads_may_change_while_others_call(isa):
    weight, x = sample()
    want, before = weight.multiply(x), native.threads()
    try:
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(lambda: torch.equal(weight.multiply(x), want)) for _ in range(200)]
            for i in range(20):
                native.set_threads(1 + i % 4)
            assert all(call.result() for call in calls)
    finally:
        native.set_threads(before)


@built
def test_a_forked_child_can_compute():
    program = """
import os, torch
from qwenkit.kernels import native
from qwenkit.kernels.native import Bf16Weight
native.set_threads(2)
w = Bf16Weight.pack(torch.eye(512).bfloat16())
x = torch.arange(512.0).bfloat16()[None]
assert torch.equal(w.multiply(x), x)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(w.multiply(x), x) else 3)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(w.multiply(x), x)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def run_with(**environment: str) -> subprocess.CompletedProcess[str]:
    program = "from qwenkit.kernels import native; print(native.explain())"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@built
def test_the_environment_forces_a_path():
    assert "SLOW" in run_with(QWENKIT_ISA="reference").stdout
    best = native.available_isas()[-1]
    if best == "reference":
        pytest.skip("this machine has no AVX2")
    assert "native, avx2" in run_with(QWENKIT_ISA="avx2").stdout
    wrong = run_with(QWENKIT_ISA="neon")
    assert wrong.returncode != 0
    assert "neon" in wrong.stderr
    assert "3 threads" in run_with(QWENKIT_THREADS="3").stdout
    assert "QWENKIT_THREADS='many'" in run_with(QWENKIT_THREADS="many").stderr


@built
def test_an_instruction_set_the_machine_lacks_is_refused():
    missing = [name for name in ("avx2", "avx512", "amx") if name not in native.available_isas()]
    for name in missing:
        with pytest.raises(UnsupportedError, match="lacks"):
            native.set_isa(name)
    with pytest.raises(UnsupportedError, match="sse9"):
        native.set_isa("sse9")
    with pytest.raises(UnsupportedError, match="0"):
        native.set_threads(0)


@built
def test_yardsticks():
    if native.available_isas()[-1] == "reference":
        pytest.skip("this machine has no AVX2")
    assert native.read_bandwidth(16) > 1e8
    assert native.peak("fma") > 1e8
    with pytest.raises(UnsupportedError, match="No peak"):
        native.peak("dreams")


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(native, "_extension", lambda: None)
    assert "SLOW" in native.explain()
    assert native.isa() == "reference"
    assert not native.ready()
    with pytest.raises(UnsupportedError, match="compiler"):
        native.extension()
