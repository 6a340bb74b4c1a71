"""How much memory may be taken: the machine's word, a container's limit, and what is mapped already."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qwenkit.engine import memory
from qwenkit.kernels.paged import PagedShape, TorchPagedLayer


def test_a_container_limits_what_the_machine_has(tmp_path: Path) -> None:
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal:       1000 kB\nMemFree: 5 kB\nMemAvailable:    800 kB\n")
    assert memory.host_memory(meminfo, limit) == (1_024_000, 819_200)
    limit.write_text("max\n")
    assert memory.host_memory(meminfo, limit) == (1_024_000, 819_200)
    limit.write_text("500000\n")
    assert memory.host_memory(meminfo, limit) == (500_000, 500_000)
    (tmp_path / "memory.stat").write_text("anon 120000\nfile 300000\n")
    assert memory.host_memory(meminfo, limit) == (500_000, 380_000)
    assert memory.host_memory(tmp_path / "absent", limit) is None


def test_files_this_process_has_mapped_are_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: (1 << 30, 3 << 20))
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nRssAnon:\t  77 kB\nRssFile:\t  1024 kB\n")
    assert memory.free_memory(torch.device("cpu"), status) == 2 << 20
    status.write_text("RssFile:\t  9999 kB\n")
    assert memory.free_memory(torch.device("cpu"), status) == 0
    assert memory.free_memory(torch.device("cpu"), tmp_path / "absent") == 3 << 20
    monkeypatch.setattr(memory, "host_memory", lambda: None)
    assert memory.free_memory(torch.device("cpu"), status) > 0


def test_asking_imports_no_torch() -> None:
    program = "import sys, qwenkit.engine.memory as m; m.host_memory(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc")
@pytest.mark.parametrize("format", ["float", "int8"])
def test_a_cache_takes_memory_as_it_is_written(format: str) -> None:
    def held() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    before = held()
    layer = TorchPagedLayer(PagedShape(1 << 14, 32, 4, 4, 64, torch.bfloat16, format))
    assert layer.nbytes > 256 << 20
    assert held() - before < 64 << 20
