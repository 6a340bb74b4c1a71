"""Facts about the computer, read from the operating system. Knows neither torch nor models."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

_FEATURES = {  # what a kernel may use: name for people -> any of these flags of /proc/cpuinfo
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "AVX-512 bf16": ("avx512_bf16",),
    "AMX int8": ("amx_int8",),
    "AMX bf16": ("amx_bf16",),
    "NEON": ("asimd",),
    "ARM dot product": ("asimddp",),
    "ARM i8mm": ("i8mm",),
    "ARM bf16": ("bf16",),
    "SVE": ("sve",),
}
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")
_PREFIXES = ("QWENKIT_", "HF_", "MODELSCOPE_", "TRANSFORMERS_", "CUDA_", "OMP_", "MKL_", "TORCH_", "PYTORCH_")
_NAMES = (
    "XDG_CACHE_HOME",
    "XDG_STATE_HOME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "NO_COLOR",
)


def cpu_fields(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The first processor's entries of cpuinfo; empty where the file does not exist (not Linux)."""
    if not cpuinfo.is_file():
        return {}
    fields: dict[str, str] = {}
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def cpu_name(fields: Mapping[str, str]) -> str:
    """What the maker calls the CPU, or its architecture."""
    return fields.get("model name") or platform.processor() or platform.machine()


def cpu_features(fields: Mapping[str, str]) -> list[str]:
    """The instruction sets that matter for inference, in the words people use."""
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return [name for name, any_of in _FEATURES.items() if flags.intersection(any_of)]


def cores() -> tuple[int, int]:
    """(cores this process may use, cores of the machine); containers and taskset lower the first."""
    total = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)), total
    return total, total


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that change what qwenkit does; secrets and the passwords in addresses are hidden."""
    found = {}
    for name, value in sorted(variables.items()):
        if name.upper() in _NAMES or name.startswith(_PREFIXES):
            hidden = any(word in name.upper() for word in _SECRET)
            found[name] = "(set, not shown)" if hidden else _without_password(value)
    return found


def _without_password(value: str) -> str:
    scheme, separator, rest = value.partition("://")
    if separator and "@" in rest:
        return f"{scheme}://***@{rest.rpartition('@')[2]}"
    return value
