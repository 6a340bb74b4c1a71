"""Where a model runs and in which number format, and why; chosen once, and printable."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from qwenkit.core.errors import RequestError

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
}


@dataclass(frozen=True)
class Placement:
    """A device and a dtype with the reason for each, in words a user can act on."""

    device: torch.device
    dtype: torch.dtype
    device_reason: str = "as asked"
    dtype_reason: str = "as asked"


def find_device(asked: str | torch.device) -> tuple[torch.device, str]:
    """The device and the reason. "auto" is CUDA, else an Apple GPU, else the CPU.

    Raises RequestError for one that is not there, listing those that are.
    """
    if asked == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device()), "a CUDA device is present"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "an Apple GPU is present"
        return torch.device("cpu"), "there is no CUDA or Apple GPU"
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise RequestError(f"Unknown device {asked!r}.", _devices()) from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available() and not device.index,
    }
    if device.type not in present:
        raise RequestError(f"qwenkit does not run on device {str(device)!r}.", _devices())
    if not present[device.type]:
        raise RequestError(f"Device {str(device)!r} is not present.", _devices())
    return device, "as asked"


def _devices() -> str:
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return f"Here you can use: auto, {', '.join(found)}."


def parse_dtype(asked: str | torch.dtype) -> torch.dtype | None:
    """The dtype meant; None for "auto". Raises RequestError listing the choices."""
    if asked == "auto":
        return None
    if isinstance(asked, torch.dtype) and asked in _DTYPES.values():
        return asked
    if isinstance(asked, str) and asked in _DTYPES:
        return _DTYPES[asked]
    raise RequestError(f"Unknown dtype {str(asked)!r}.", f"Choose auto, {', '.join(_DTYPES)}.")


def choose_dtype(
    device: torch.device, stored: torch.dtype, *, quantized: bool = False
) -> tuple[torch.dtype, str]:
    """What "auto" means on this device, and why: the stored dtype where it runs well, else the nearest.

    stored: dtype of the checkpoint's float tensors. quantized: they are the lesser part of it, so that
    their float32 says nothing about the weights.
    """
    if stored == torch.float32 and not quantized:
        return torch.float32, "the checkpoint stores it"
    if device.type == "cuda":
        if stored == torch.float16:
            return torch.float16, "the checkpoint stores it"
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU computes it natively"
        return torch.float16, "the GPU has no native bfloat16"
    if device.type == "mps":
        return torch.float16, "Apple GPUs run it best"
    feature = cpu_bfloat16()
    if feature is not None:
        return torch.bfloat16, f"the CPU computes it natively ({feature})"
    return torch.float32, "the CPU has no native bfloat16 (avx512_bf16, amx_bf16 or ARM bf16)"


def cpu_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The CPU feature that multiplies bfloat16, or None. Without a cpuinfo file (not Linux) None."""
    if not cpuinfo.is_file():
        return None
    flags: set[str] = set()
    for line in cpuinfo.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, ARM
            flags.update(value.split())
    features = ("amx_bf16", "avx512_bf16", "bf16" if platform.machine() in ("aarch64", "arm64") else "")
    return next((feature for feature in features if feature in flags), None)
