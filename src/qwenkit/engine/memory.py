"""How much memory the machine has, and how much of it could be taken now. Imports no torch by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_UNKNOWN = 8 << 30  # bytes taken for free where no system says


def host_memory(
    meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")
) -> tuple[int, int] | None:
    """(total, available) bytes of RAM, a container's limit respected; None where it cannot be read.

    Available is what no process holds for itself; pages of files count, for the system can drop them.
    """
    fields = _fields(meminfo)
    if "MemTotal" not in fields or "MemAvailable" not in fields:
        return None
    total, available = fields["MemTotal"] << 10, fields["MemAvailable"] << 10
    bound = limit.read_text().strip() if limit.is_file() else "max"
    if bound.isdecimal():
        held = _fields(limit.with_name("memory.stat")).get("anon", 0)
        total, available = min(total, int(bound)), min(available, max(0, int(bound) - held))
    return total, available


def free_memory(device: torch.device, status: Path = Path("/proc/self/status")) -> int:
    """Bytes on `device` that could be taken now without driving out the files this process has mapped."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    host = host_memory()
    if host is None:
        return _UNKNOWN
    return max(0, host[1] - (_fields(status).get("RssFile", 0) << 10))


def _fields(file: Path) -> dict[str, int]:
    """The lines `name: number ...` or `name number` of a file; none of a file that is not there."""
    if not file.is_file():
        return {}
    words = (line.replace(":", " ").split() for line in file.read_text().splitlines())
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}
