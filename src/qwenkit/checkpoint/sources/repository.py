"""What a model repository holds and which of its files are needed. Pure: no network, no disk.

Code files are never chosen: qwenkit runs none. Of several weight formats one is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from qwenkit.core import DownloadError

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[^:@\s]+))?(?::(?P<file>[^:\s]+))?")
_SPLIT = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")
_BESIDES = ("*.json", "*.tiktoken", "merges.txt", "*.jinja", "LICENSE*", "NOTICE*")
_SHOWN = 20


@dataclass(frozen=True)
class HubName:
    """`org/name`, optionally `@revision` and `:file`, where file picks one of several GGUF files."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Raises DownloadError when `text` is not of this form."""
        found = _NAME.fullmatch(text)
        if found is None:
            raise DownloadError(
                f"{text!r} is not the name of a model on a hub.",
                "Write org/name, org/name@revision or org/name:q4_k_m, e.g. Qwen/Qwen2.5-0.5B-Instruct.",
            )
        return cls(found["repo"], found["revision"], found["file"])


@dataclass(frozen=True)
class RepositoryFile:
    """One file as the hub describes it: bytes, and SHA-256 or git blob id (SHA-1) where given."""

    path: str
    size: int | None = None
    sha256: str | None = None
    blob_id: str | None = None


def choose_files(files: Sequence[RepositoryFile], wanted: str | None, repo: str) -> list[RepositoryFile]:
    """The files to fetch: configuration, tokenizer, licence and one form of the weights.

    Safetensors are preferred; else pytorch_model*.bin; else the one GGUF file (or set of split files).
    `wanted` picks a GGUF file: its name, or the end of its name without .gguf ("q4_k_m"), in any case.

    Raises:
        DownloadError: no weights, several GGUF files without a choice, or a choice that fits none or several.
    """
    top = [f for f in files if "/" not in f.path]
    besides = [f for f in top if any(fnmatchcase(f.path, p) for p in _BESIDES)]
    if wanted is not None:
        return [*_only_texts(besides), *choose_gguf(files, wanted, repo)]
    # "consolidated" is a second copy of the same weights in another naming.
    safetensors = [
        f for f in top if f.path.endswith(".safetensors") and not f.path.startswith("consolidated")
    ]
    if safetensors:
        return [f for f in besides if not f.path.endswith(".bin.index.json")] + safetensors
    pickles = [f for f in top if fnmatchcase(f.path, "pytorch_model*.bin") or f.path == "adapter_model.bin"]
    if pickles:
        return [f for f in besides if not f.path.endswith(".safetensors.index.json")] + pickles
    if any(f.path.lower().endswith(".gguf") for f in files):
        return [*_only_texts(besides), *choose_gguf(files, None, repo)]
    raise DownloadError(
        f"{repo} holds no weights qwenkit reads (*.safetensors, pytorch_model*.bin, *.gguf); it holds: "
        f"{_listed([f.path for f in files])}.",
        "Check the name; quantized models are often in a repository of their own.",
    )


def choose_gguf(files: Sequence[RepositoryFile], wanted: str | None, repo: str) -> list[RepositoryFile]:
    """All parts, in order, of the one GGUF model that `wanted` means (the only one there is if None).

    Raises:
        DownloadError: none or several fit.
    """
    gguf = [f for f in files if f.path.lower().endswith(".gguf") and "mmproj" not in f.path.lower()]
    models: dict[str, list[RepositoryFile]] = {}
    for file in gguf:
        split = _SPLIT.fullmatch(file.path)
        models.setdefault(split["stem"] if split else file.path[: -len(".gguf")], []).append(file)
    fitting = {stem: parts for stem, parts in models.items() if wanted is None or _fits(stem, parts, wanted)}
    if len(fitting) == 1:
        return sorted(next(iter(fitting.values())), key=lambda f: f.path)
    names = _listed([PurePosixPath(stem).name for stem in sorted(fitting or models)])
    if wanted is not None:
        raise DownloadError(
            f"{wanted!r} fits {len(fitting)} GGUF files of {repo}; "
            f"{'those' if fitting else 'it holds'}: {names or 'none'}.",
            f"Name exactly one, as {repo}:FILE.",
        )
    raise DownloadError(
        f"{repo} holds {len(models)} GGUF files: {names}.",
        f"Choose one by the end of its name: {repo}:q4_k_m.",
    )


def _fits(stem: str, parts: list[RepositoryFile], wanted: str) -> bool:
    name, choice = PurePosixPath(stem).name.lower(), wanted.lower().removesuffix(".gguf")
    exact = any(wanted == part.path for part in parts)
    return exact or name == choice or (name.endswith(choice) and name[-len(choice) - 1] in "-._")


def _only_texts(besides: list[RepositoryFile]) -> list[RepositoryFile]:
    """A GGUF file carries configuration and tokenizer; only the licence belongs to it."""
    return [f for f in besides if f.path.startswith(("LICENSE", "NOTICE"))]


def missing_files(present: Sequence[str], indexed: Sequence[str] = ()) -> list[str]:
    """What a folder with the files `present` lacks to be a whole checkpoint, in words; empty if whole.

    `indexed` are the shards that its index names.
    """
    names = set(present)
    lacking = [name for name in sorted(set(indexed)) if name not in names]
    gguf = sorted(n for n in names if n.endswith(".gguf"))
    weights = [n for n in names if n.endswith(".safetensors") or fnmatchcase(n, "*_model*.bin")]
    for name in [*gguf, *weights]:
        numbered = re.fullmatch(r"(.+-)(\d{5})-of-(\d{5})(\.\w+)", name)
        if numbered:
            head, _, count, tail = numbered.groups()
            expected = {f"{head}{i:05d}-of-{count}{tail}" for i in range(1, int(count) + 1)}
            lacking += sorted(expected - names - set(lacking))
    if gguf and not weights:
        return lacking
    if not weights and not lacking:
        lacking.append("weights (*.safetensors)")
    if "adapter_config.json" not in names:
        if "config.json" not in names:
            lacking.append("config.json")
        if not names & {"qwen.tiktoken", "tokenizer.json"} and not {"vocab.json", "merges.txt"} <= names:
            lacking.append("tokenizer (qwen.tiktoken or tokenizer.json)")
    return lacking


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
