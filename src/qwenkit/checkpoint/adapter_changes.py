"""What an adapter does to a model: changes of rows of its tensors, by canonical name.

An adapter speaks of modules in v1 or in Qwen2 terms, whatever layout the base has. Its parts for q, k and v
are rows of c_attn, and rows of a product B A are rows of B, so either fits the other exactly.

LoRA: arXiv 2106.09685; rsLoRA: 2312.03732; DoRA: 2402.09353.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qwenkit.checkpoint.adapter import Adapter
from qwenkit.checkpoint.empty_model import empty_model
from qwenkit.checkpoint.names import Layout, stored_modules
from qwenkit.core import CheckpointError, UnsupportedError
from qwenkit.model import ModelConfig

_LAYOUTS: tuple[Layout, ...] = ("qwen-v1", "qwen2")
_EMBEDDING = "transformer.wte"
_OUTPUT = "lm_head"


@dataclass(frozen=True)
class Change:
    """Of rows first ... first + rows - 1 of the tensor `name`. kind: "LoRA", "DoRA", "bias" or "replaced"."""

    name: str
    first: int
    rows: int
    kind: str
    adapter: Adapter
    module: str

    @property
    def words(self) -> str:
        """For a person: "LoRA, rank 8, scale 2"."""
        if self.kind == "replaced":
            return "replaced"
        config = self.adapter.config
        what = "bias of LoRA" if self.kind == "bias" else self.kind
        return f"{what}, rank {config.rank_of(self.module)}, scale {config.scale_of(self.module):g}"

    def apply(self, held: Tensor, at: int) -> Tensor:
        """held: float32, rows of the tensor from row `at` on, all of them changed. Returns the new."""
        read, config = self.adapter.read, self.adapter.config
        rows = slice(at - self.first, at - self.first + len(held))
        if self.kind == "replaced":
            return read(self.module, self.name.rpartition(".")[2])[rows]
        scale = config.scale_of(self.module)
        if self.kind == "bias":
            return held + scale * read(self.module, "bias of B")[rows]
        embedding = "embedding A" in self.adapter.tensors[self.module]
        if embedding:  # its rows are those of A
            left, right = read(self.module, "embedding A").t()[rows], read(self.module, "embedding B").t()
        else:
            left, right = read(self.module, "B")[rows], read(self.module, "A")
        merged: Tensor = torch.addmm(held, left, right, alpha=scale)
        if self.kind == "LoRA":
            return merged
        # Of a linear layer each output has a length, of an embedding each of its columns.
        length = torch.linalg.vector_norm(merged, dim=0 if embedding else 1, keepdim=True)
        magnitude = read(self.module, "magnitude")
        return merged.mul_((magnitude[None] if embedding else magnitude[rows, None]) / length)


@dataclass(frozen=True)
class _Place:
    """Where a module of the adapter is in the model: rows of a canonical module."""

    canonical: str
    module: nn.Module
    first: int
    rows: int

    def shape(self, kind: str) -> tuple[int, ...]:
        return (self.rows, *self.module.get_parameter(kind).shape[1:])

    def has(self, kind: str) -> bool:
        return any(name == kind for name, _ in self.module.named_parameters(recurse=False))


def changes_of(adapter: Adapter, config: ModelConfig, base: str) -> dict[str, list[Change]]:
    """Canonical tensor name -> its changes in order. base: what the model is called in errors.

    Raises CheckpointError for a module that the model lacks, a tensor of another shape (both are named), and
    tensors that the adapter's configuration promises and the file lacks; UnsupportedError for what cannot be
    merged. Reads headers only.
    """
    places = _places_named_by(adapter, config, base)
    found: dict[str, list[Change]] = {}
    for module in adapter.tensors:
        for change in _changes(adapter, module, places[module]):
            found.setdefault(change.name, []).append(change)
    _check_complete(adapter, places)
    return found


def _places_named_by(adapter: Adapter, config: ModelConfig, base: str) -> dict[str, _Place]:
    """All modules of the model in the terms that the adapter uses."""
    known = {layout: _places(config, layout) for layout in _LAYOUTS}
    unknown = {layout: [m for m in adapter.tensors if m not in known[layout]] for layout in _LAYOUTS}
    layout = min(_LAYOUTS, key=lambda one: len(unknown[one]))
    if unknown[layout]:
        first = unknown[layout][0]
        tensor = next(iter(adapter.tensors[first].values()))
        more = f" and {len(unknown[layout]) - 1} other modules" if len(unknown[layout]) > 1 else ""
        raise CheckpointError(
            f"The adapter {adapter.path} is for another model: {base} has no {first!r} (tensor {tensor!r})"
            f"{more}.",
            _right_base(adapter),
        )
    return known[layout]


def _places(config: ModelConfig, layout: Layout) -> dict[str, _Place]:
    model = empty_model(config)
    places = {}
    for canonical, parts in stored_modules(layout, config.num_layers).items():
        module, first = model.get_submodule(canonical), 0
        total = module.get_parameter("weight").shape[0]
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        sizes = [total] if len(parts) == 1 else [count * config.head_dim for count in heads]
        for part, rows in zip(parts, sizes, strict=True):
            places[part] = _Place(canonical, module, first, rows)
            first += rows
    return places


def _changes(adapter: Adapter, module: str, place: _Place) -> Iterator[Change]:
    tensors = adapter.tensors[module]
    for kind in ("weight", "bias"):  # before what is added to them
        if kind in tensors:
            if not place.has(kind):
                raise CheckpointError(
                    f"The adapter {adapter.path} has {tensors[kind]!r}, but {module} has no {kind} here.",
                    _right_base(adapter),
                )
            _check_shape(adapter, module, kind, place.shape(kind))
            yield _change(adapter, module, place, kind, "replaced")
    pair = _pair(adapter, module, place)
    if pair is None:
        return
    config = adapter.config
    rank = config.rank_of(module)
    rows, columns = place.shape("weight")
    down, up = pair
    embedding = down == "embedding A"
    _check_shape(adapter, module, down, (rank, rows if embedding else columns))
    _check_shape(adapter, module, up, (columns if embedding else rows, rank))
    if config.dora != ("magnitude" in tensors):
        has, what = ("has", "false") if "magnitude" in tensors else ("lacks", "true")
        raise CheckpointError(
            f"The adapter {adapter.path} {has} the lora_magnitude_vector of {module}, and its configuration "
            f"says use_dora {what}.",
            "Save it again where it was trained.",
        )
    if config.dora:
        _check_shape(adapter, module, "magnitude", (columns if embedding else rows,))
    yield _change(adapter, module, place, "weight", "DoRA" if config.dora else "LoRA")
    if "bias of B" in tensors:
        if config.dora or not place.has("bias"):
            why = "with DoRA it has no one meaning" if config.dora else f"{module} has no bias to add it to"
            raise UnsupportedError(
                f"The adapter {adapter.path} has {tensors['bias of B']!r}, and {why}.", "It cannot be merged."
            )
        _check_shape(adapter, module, "bias of B", (rows,))
        yield _change(adapter, module, place, "bias", "bias")


def _change(adapter: Adapter, module: str, place: _Place, kind: str, how: str) -> Change:
    return Change(f"{place.canonical}.{kind}", place.first, place.rows, how, adapter, module)


def _pair(adapter: Adapter, module: str, place: _Place) -> tuple[str, str] | None:
    """The names of the two low-rank parts that fit the module; None where only whole tensors are given."""
    tensors = adapter.tensors[module]
    linear = isinstance(place.module, nn.Linear)
    wanted = ("A", "B") if linear else ("embedding A", "embedding B")
    given = [part for part in tensors if part not in ("weight", "bias")]
    if not given:
        return None
    wrong = [p for p in given if p not in (*wanted, "magnitude", *(("bias of B",) if linear else ()))]
    if wrong or not (linear or isinstance(place.module, nn.Embedding)):
        raise CheckpointError(
            f"The adapter {adapter.path} has {tensors[(wrong or given)[0]]!r}, which does not go with "
            f"{module}, a {type(place.module).__name__}.",
            _right_base(adapter),
        )
    missing = [part for part in wanted if part not in tensors]
    if missing:
        raise CheckpointError(
            f"The adapter {adapter.path} has {tensors[given[0]]!r}, but no lora {missing[0]} beside it.",
            "Save it again where it was trained.",
        )
    return wanted


def _check_shape(adapter: Adapter, module: str, part: str, wanted: tuple[int, ...]) -> None:
    shape = adapter.shape(module, part)
    if shape == wanted:
        return
    remedy = _right_base(adapter)
    if part in ("A", "B", "embedding A", "embedding B"):
        remedy += f" The configuration gives {module} the rank {adapter.config.rank_of(module)}."
    elif part == "weight" and len(shape) == 2 and shape[1:] == wanted[1:]:
        remedy = f"Give the base as many rows first: qwenkit convert --vocab-size {shape[0]}."
    raise CheckpointError(
        f"The adapter {adapter.path}: tensor {adapter.tensors[module][part]!r} has shape {list(shape)}, "
        f"expected {list(wanted)}.",
        remedy,
    )


def _check_complete(adapter: Adapter, places: Mapping[str, _Place]) -> None:
    """What was trained must be there: trainers are known to have left tensors out."""
    config, tensors = adapter.config, adapter.tensors
    lacking = [
        module
        for module, place in places.items()
        if isinstance(place.module, nn.Linear | nn.Embedding)
        and config.targets_module(module)
        and not {"A", "embedding A"} & tensors.get(module, {}).keys()
    ]
    if lacking:
        raise CheckpointError(
            f"The adapter {adapter.path} should change {_listed(lacking)} by its target_modules, "
            "but has no tensors for that.",
            _right_base(adapter),
        )
    for entry in config.whole:
        if not any(config.trains_whole(entry, module) and "weight" in tensors[module] for module in tensors):
            raise CheckpointError(
                f"The adapter {adapter.path} was trained with {entry!r} as a whole (modules_to_save), but "
                "does not hold it: the original finetune.py leaves it out of the last save.",
                "Take the folder checkpoint-N of that training; or remove the name from modules_to_save to "
                "merge without it.",
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _right_base(adapter: Adapter) -> str:
    trained_on = adapter.config.base
    return "Merge it into the model it was trained on" + (f": {trained_on}." if trained_on else ".")


def unties(changes: Mapping[str, Sequence[Change]], adapter: Adapter) -> bool:
    """Whether embedding and output, tied in the base, are two after the merge.

    Training changes one of them; the other stays as it was, unless ensure_weight_tying made them one. Raises
    UnsupportedError for tied training whose adapter has more than the embedding itself.
    """
    touched = [name for name in (f"{_EMBEDDING}.weight", f"{_OUTPUT}.weight") if name in changes]
    if not touched:
        return False
    if not adapter.config.tied:
        return True
    if f"{_OUTPUT}.weight" in touched:
        raise UnsupportedError(
            f"The adapter {adapter.path} was trained with ensure_weight_tying and changes the output too.",
            "Merge it with peft.",
        )
    return False
