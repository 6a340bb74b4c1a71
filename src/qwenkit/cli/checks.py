"""What `qwenkit doctor` looks at. Each check returns findings and changes nothing."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qwenkit.cli import machine
from qwenkit.core import QwenkitError
from qwenkit.engine.memory import host_memory

if TYPE_CHECKING:
    from qwenkit.checkpoint import Checkpoint

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*(?:\(?>=\s*([0-9.]+))?")
_IMPORT_NAMES = {"huggingface-hub": "huggingface_hub", "prompt-toolkit": "prompt_toolkit"}
_FREE_FOR_DEMO = 2 << 30  # the demo file while it is fetched and put together


@dataclass(frozen=True)
class Finding:
    """`problem` stops qwenkit, `warning` costs something, `ok` and `note` are for reading."""

    topic: str
    status: Literal["ok", "note", "warning", "problem"]
    text: str
    remedy: str = ""


def version_tuple(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    numbers = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in numbers[0].split(".")) if numbers else ()


def python() -> Iterator[Finding]:
    """The interpreter and the system."""
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("python", "ok", text)


def packages(requirements: Sequence[str]) -> Iterator[Finding]:
    """Every required distribution is there, new enough and importable; optional ones are noted.

    requirements: as in the metadata of a distribution, 'torch>=2.6' or 'peft>=1; extra == "train"'.
    """
    for requirement in requirements:
        wanted, _, marker = requirement.partition(";")
        found = _REQUIREMENT.match(wanted.strip())
        if found is None or found[1] == "qwenkit" or 'extra == "dev"' in marker.replace("'", '"'):
            continue
        yield _package(found[1], found[2] or "", marker)


def _package(name: str, minimum: str, marker: str) -> Finding:
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
    install = f"Install it: pip install 'qwenkit{f'[{extra[1]}]' if extra else ''}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if extra:
            return Finding(name, "note", f"not installed; only 'qwenkit[{extra[1]}]' needs it")
        return Finding(name, "problem", "not installed", install)
    if minimum and version_tuple(version) < version_tuple(minimum):
        status: Literal["warning", "problem"] = "warning" if extra else "problem"
        return Finding(
            name,
            status,
            f"{version}, but {minimum} or later is needed",
            install.replace("Install", "Upgrade"),
        )
    if not extra:
        try:
            importlib.import_module(_IMPORT_NAMES.get(name, name))
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the finding
            return Finding(
                name,
                "problem",
                f"{version}, but importing it fails: {error}",
                f"pip install --force-reinstall {name}",
            )
    return Finding(name, "ok", f"{version}{f' (>= {minimum})' if minimum else ''}")


def hardware() -> Iterator[Finding]:
    """CPU, cores, memory."""
    from qwenkit.cli.memory import size

    fields = machine.cpu_fields()
    usable, total = machine.cores()
    yield Finding("cpu", "ok", f"{machine.cpu_name(fields)}, {usable} of {total} cores usable")
    yield Finding("instructions", "ok", ", ".join(machine.cpu_features(fields)) or "unknown on this system")
    ram = host_memory()
    if ram is None:
        yield Finding("memory", "note", "cannot be read on this system")
    else:
        yield Finding("memory", "ok", f"{size(ram[1])} available of {size(ram[0])}")


def gpu() -> Iterator[Finding]:
    """CUDA devices with their memory."""
    import torch

    from qwenkit.cli.memory import size

    if not torch.cuda.is_available():
        built = (
            f"torch is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "torch is built without CUDA"
        )
        yield Finding("gpu", "note", f"none ({built})")
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = f"compute capability {about.major}.{about.minor}"
        yield Finding(
            "gpu", "ok", f"cuda:{index} {about.name}, {size(free)} free of {size(total)}, {capability}"
        )


def running(checkpoint: Checkpoint | None) -> Iterator[Finding]:
    """Which device, number format and kernels would be used, and why."""
    import torch

    from qwenkit.engine.device import choose_dtype, find_device

    device, reason = find_device("auto")
    stored = torch.bfloat16 if checkpoint is None else checkpoint.dtype
    quantized = checkpoint is not None and not checkpoint.quantization.startswith("none")
    dtype, dtype_reason = choose_dtype(device, stored, quantized=quantized)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    yield Finding("device", "ok", f"{device}{threads} ({reason})")
    of = "" if checkpoint is not None else " for a bfloat16 checkpoint"
    yield Finding("dtype", "ok", f"{str(dtype).removeprefix('torch.')}{of} ({dtype_reason})")
    if device.type != "cpu":
        yield Finding("kernels", "ok", f"torch {torch.__version__} operators")
        return
    from qwenkit import kernels

    text = kernels.explain().splitlines()[0].removeprefix("kernels: ")
    remedy = "Install a C++20 compiler and Python's headers, then reinstall qwenkit; unset QWENKIT_ISA."
    yield Finding("kernels", "warning", text, remedy) if "SLOW" in text else Finding("kernels", "ok", text)


def cache_folder() -> Iterator[Finding]:
    """Where models are kept: writable, and with room for the demo model."""
    from qwenkit.checkpoint.store import cache_root
    from qwenkit.cli.memory import size

    folder = cache_root()
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    text = f"{folder}, {size(free)} free"
    if not os.access(existing, os.W_OK):
        yield Finding(
            "cache", "problem", f"{text}, not writable", "Set QWENKIT_CACHE to a folder you may write to."
        )
    elif free < _FREE_FOR_DEMO:
        yield Finding(
            "cache", "warning", text, "Free space there, or set QWENKIT_CACHE to a folder on another disk."
        )
    else:
        yield Finding("cache", "ok", text)


def model(name: str | None, opener: Any) -> tuple[list[Finding], Checkpoint | None]:
    """The checkpoint opens, its headers are whole, and it fits the memory. Never downloads."""
    try:
        checkpoint: Checkpoint = opener(name, offline=True)
        checkpoint.check()
        checkpoint.tokenizer()
    except QwenkitError as error:
        if name is None and not os.environ.get("QWENKIT_MODEL"):  # a fresh machine: nothing is broken
            return [
                Finding("demo model", "note", "not on this machine yet", "The first chat fetches it.")
            ], None
        return [Finding("model", "problem", error.problem, error.remedy)], None
    kind = "chat" if checkpoint.is_chat else "base"
    found = [
        Finding(
            "model", "ok", f"{checkpoint.path}: {checkpoint.layout} layout, {kind}, {checkpoint.quantization}"
        )
    ]
    return [*found, *_fit(checkpoint)], checkpoint


def _fit(checkpoint: Checkpoint) -> Iterator[Finding]:
    from qwenkit.cli.memory import cache_bytes, size
    from qwenkit.engine.device import choose_dtype, find_device

    stored = held = sum(entry.nbytes for entry in checkpoint.entries())
    if not checkpoint.quantization.startswith("GPTQ"):  # those stay packed; all else is held in the dtype
        quantized = not checkpoint.quantization.startswith("none")
        dtype, _ = choose_dtype(find_device("auto")[0], checkpoint.dtype, quantized=quantized)
        held = checkpoint.config.parameter_count * dtype.itemsize
    needed = held + cache_bytes(checkpoint.config, 2048, 16)
    ram = host_memory()
    text = f"weights {size(held)} in memory ({size(stored)} stored), {size(needed)} with 2048 tokens of cache"
    if ram is not None and needed > ram[1]:
        yield Finding(
            "fit",
            "warning",
            f"{text}; {size(ram[1])} available",
            "Close other programs, or take a smaller or quantized model.",
        )
    else:
        yield Finding("fit", "ok", text)


def hubs(seconds: float, addresses: dict[str, str]) -> Iterator[Finding]:
    """Whether each hub answers within `seconds`, all asked at once."""
    answers: dict[str, Finding] = {}
    threads = [
        threading.Thread(target=_reach, args=(name, address, seconds, answers), daemon=True)
        for name, address in addresses.items()
    ]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:  # name resolution obeys no timeout, so the wait itself is bounded
        thread.join(max(0.0, end - time.monotonic()))
    for name, address in addresses.items():
        silent = Finding(
            f"hub {name}", "warning", f"{address} did not answer within {seconds:g} s", _ELSEWHERE
        )
        yield answers.get(name, silent)


_ELSEWHERE = "Check the network and proxy, set HF_ENDPOINT to a mirror, or use a local path."


def _reach(name: str, address: str, seconds: float, answers: dict[str, Finding]) -> None:
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "qwenkit-doctor"})
    began = time.monotonic()
    try:
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:
        pass  # it answered, which is all that was asked
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        answers[name] = Finding(
            f"hub {name}", "warning", f"{address} cannot be reached: {reason}", _ELSEWHERE
        )
        return
    answers[name] = Finding(f"hub {name}", "ok", f"{address} answers in {time.monotonic() - began:.1f} s")


def environment() -> Iterator[Finding]:
    """Variables that are set and matter."""
    for name, value in machine.environment(os.environ).items():
        yield Finding("environment", "note", f"{name}={value}")


def kept_history(path: Path | None) -> Iterator[Finding]:
    """Where typed questions are remembered, because it is the one thing written about a person."""
    where = "not kept" if path is None else f"{path} (QWENKIT_HISTORY= turns it off)"
    yield Finding("chat history", "note", where)
