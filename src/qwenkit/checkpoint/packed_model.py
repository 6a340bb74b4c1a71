"""From a checkpoint to a model whose linear layers are packed, and the packed form kept for the next start.

Knows the loader, the store and what a packed layer consists of; not where the tensors come from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qwenkit.checkpoint.empty_model import empty_model
from qwenkit.checkpoint.loading import Loader
from qwenkit.checkpoint.packed_file import PackedFile, PackedWriter
from qwenkit.checkpoint.progress import say
from qwenkit.checkpoint.store import DerivedStore, StoreError
from qwenkit.core import CheckpointError
from qwenkit.model import CausalLM
from qwenkit.quant import Packer, Packing
from qwenkit.quant.packing import why_not_native
from qwenkit.quant.records import layout_fingerprint, rebuild_layer, record_layer

# Raise it when the same checkpoint and options give other weights, or the entries other contents.
_VERSION = 4
_EMBEDDING = "transformer.wte"


@dataclass(frozen=True)
class LoadedModel:
    """unpacked: why torch runs some linear layers, None if kernels run all."""

    model: CausalLM
    unpacked: str | None


def pack_while_loading(
    loader: Loader, packing: Packing, *, device: torch.device, dtype: torch.dtype, progress: bool
) -> LoadedModel:
    """Pack each layer as soon as it is read: memory peaks one layer above the result."""
    model, packer = empty_model(loader.config), Packer(packing, device)
    codes = packing.keeps_codes if why_not_native(device) is None else lambda name: False
    for name in loader.fill(model, device=device, dtype=dtype, codes=codes, progress=progress):
        if packer.pack(model, name):
            loader.release(name)
    return LoadedModel(model.eval(), packer.left())


def load_kept(
    loader: Loader,
    packing: Packing,
    *,
    identity: Callable[[], str],
    dtype: torch.dtype,
    progress: bool,
    idle: Callable[[], object],
) -> LoadedModel:
    """The packed model from the cache, packed into it first if it is not there; the CPU only.

    identity: gives what stands for the content of the checkpoint's files. idle: called when what is left
    is to read. An entry that is damaged is made
    again, and a cache that cannot take one is done without; both are said on standard error.
    """
    store = DerivedStore()
    if store.limit == 0:
        return pack_while_loading(loader, packing, device=torch.device("cpu"), dtype=dtype, progress=progress)
    options = f"{identity()} {packing} {dtype} {layout_fingerprint()} {_VERSION}"
    key = f"packed-{hashlib.sha256(options.encode()).hexdigest()[:40]}"

    def make(place: Path) -> None:
        _write(place, key, loader, packing, dtype, progress)

    try:
        for again in (False, True):
            place = store.get_or_make(key, make, durable=False)
            try:
                model, left = _read(place, key, loader, idle)
            except CheckpointError as error:
                if again:
                    raise StoreError(error.problem, error.remedy) from error
                say(f"{error.problem} It is made again.")
                store.discard(key)
            except FileNotFoundError:  # deleted by another process to make room
                if again:
                    raise StoreError(f"{place} vanished.") from None
            else:
                return LoadedModel(model, left)
    except StoreError as error:
        say(f"The packed weights are not kept, so every start packs them again: {error}")
    return pack_while_loading(loader, packing, device=torch.device("cpu"), dtype=dtype, progress=progress)


def _write(
    place: Path, key: str, loader: Loader, packing: Packing, dtype: torch.dtype, progress: bool
) -> None:
    """Stream the packed model into a file, one module in memory at a time (and a tied embedding)."""
    device = torch.device("cpu")
    model, packer = empty_model(loader.config), Packer(packing, device)
    blank = empty_model(loader.config)
    records: dict[str, object] = {}
    with PackedWriter(place) as file:
        for name in loader.fill(
            model, device=device, dtype=dtype, codes=packing.keeps_codes, progress=progress
        ):
            packer.pack(model, name)
            module = model.get_submodule(name)
            records[name] = record_layer(module)
            for kind, tensor in module.state_dict().items():
                file.add(f"{name}.{kind}", tensor, mapped=name == _EMBEDDING)
            del module
            if name != _EMBEDDING or not loader.config.tied_embeddings:
                model.set_submodule(name, blank.get_submodule(name))
                loader.release(name)
        file.finish({"key": key, "layers": records, "left": packer.left()})


def _read(place: Path, key: str, loader: Loader, idle: Callable[[], object]) -> tuple[CausalLM, str | None]:
    """The model of an entry. Raises CheckpointError for one that is damaged or belongs to another key."""
    file = PackedFile(place)
    if file.about.get("key") != key:
        raise CheckpointError(f"{place}: it holds another model.")
    tensors = file.read(idle)
    model = empty_model(loader.config)
    for name, record in file.about["layers"].items():
        stem = f"{name}."
        own = {kind.removeprefix(stem): t for kind, t in tensors.items() if kind.startswith(stem)}
        if record is not None:
            model.set_submodule(name, rebuild_layer(record, own))
            continue
        module = model.get_submodule(name)
        for kind, tensor in own.items():
            setattr(module, kind, nn.Parameter(tensor, requires_grad=False))
    return model.eval(), file.about["left"]


def identity_of(files: list[Path], hash_file: Callable[[Path], str]) -> str:
    """One hash for the content of several files, whatever folder they are in; they are hashed in threads."""
    files = sorted(files)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        lines = [
            f"{path.name} {found}\n" for path, found in zip(files, threads.map(hash_file, files), strict=True)
        ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
