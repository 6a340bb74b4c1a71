"""How each linear layer of each block is rounded: all alike, or by what it is worth within a budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwenkit.core import RequestError
from qwenkit.model import ModelConfig
from qwenkit.quant.gptq import packed_bits
from qwenkit.quant.gptq_rounding import Rounding
from qwenkit.quantize.budget import Budget, Option, choose
from qwenkit.quantize.layers import LAYERS, shapes
from qwenkit.quantize.sensitivity import UNITS, Worth
from qwenkit.quantize.source import Source

_FINE = 32  # inputs of the smaller groups that a mixture may choose


@dataclass(frozen=True)
class Mixture:
    """blocks: the rounding of each layer of each block; worth: what the choice was made by, if it was one."""

    blocks: tuple[Mapping[str, Rounding], ...]
    worth: tuple[Worth, ...] = ()

    @classmethod
    def uniform(cls, rounding: Rounding, blocks: int) -> Mixture:
        return cls(tuple(dict.fromkeys(LAYERS, rounding) for _ in range(blocks)))

    @classmethod
    def chosen(cls, source: Source, base: Rounding, budget: Budget, worth: Sequence[Worth]) -> Mixture:
        """The mixture of `roundings(base)` that is expected to lose least within the budget."""
        options = roundings(base, source.config)
        room = room_for(source, base, budget)
        units = [
            [Option(_bits(source.config, unit.layers, one), unit.cost(at)) for at, one in enumerate(options)]
            for unit in worth
        ]
        blocks: list[dict[str, Rounding]] = [{} for _ in range(source.config.num_layers)]
        for unit, at in zip(worth, choose(units, room), strict=True):
            blocks[unit.block] |= dict.fromkeys(unit.layers, options[at])
        return cls(tuple(blocks), tuple(worth))

    def bits_a_weight(self, config: ModelConfig) -> float:
        bits = sum(
            _bits(config, (name,), rounding) for block in self.blocks for name, rounding in block.items()
        )
        return bits / _weights(config)

    def fields(self, base: Rounding) -> dict[str, dict[str, Any]]:
        """Canonical module -> what quantize_config.json must say of it, where it is not rounded as `base`."""
        return {
            f"transformer.h.{number}.{name}": {"bits": rounding.bits, "group_size": rounding.group}
            for number, block in enumerate(self.blocks)
            for name, rounding in block.items()
            if rounding != base
        }

    def described(self, config: ModelConfig) -> dict[str, Any]:
        """As JSON, for the report."""
        if not self.worth:
            return {}
        units = []
        for unit in self.worth:
            rounding = self.blocks[unit.block][unit.layers[0]]
            units.append({**unit.described(), "bits": rounding.bits, "group_size": rounding.group})
        return {"bits_a_weight": self.bits_a_weight(config), "units": units}


def roundings(base: Rounding, config: ModelConfig) -> list[Rounding]:
    """What a mixture may choose from: `base`, smaller groups where they divide, 8 bits."""
    found = [base]
    if base.group != _FINE and all(inputs % _FINE == 0 for _, inputs in shapes(config).values()):
        found.append(replace(base, group=_FINE))
    return [*found, replace(base, bits=8)]


def room_for(source: Source, base: Rounding, budget: Budget) -> int:
    """Bits for all quantized layers. Raises RequestError for one too small, or larger than all."""
    config, others = source.config, others_bytes(source)
    sizes = [
        [_bits(config, unit, one) * config.num_layers for one in roundings(base, config)] for unit in UNITS
    ]
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    room = budget.room(_weights(config), others)
    if not least <= room <= most:
        low, high = (budget.words(bits, _weights(config), others) for bits in (least, most))
        raise RequestError(
            f"The budget is {budget.words(room, _weights(config), others)}; "
            f"this model takes {low} with 4 bits everywhere and {high} with 8.",
            "Give one between these, or leave out --budget.",
        )
    return room


def others_bytes(source: Source) -> int:
    """Bytes of what is not codes, scales and zeros: floats that are kept, and g_idx."""
    kept = sum(
        tensor.nbytes // tensor.dtype.itemsize * source.kept_dtype.itemsize for tensor in source.kept()
    )
    stored = {name: 3 if name == "attn.c_attn" and source.layout == "qwen2" else 1 for name in LAYERS}
    orders = sum(4 * stored[name] * inputs for name, (_, inputs) in shapes(source.config).items())
    return kept + source.config.num_layers * orders


def table(mixture: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How it was rounded -> which layers, for a person. mixture: as `described`."""
    held: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for unit in mixture["units"]:
        held.setdefault((unit["bits"], unit["group_size"]), []).append(unit)
    usual = Counter({kind: len(units) for kind, units in held.items()}).most_common(1)[0][0]
    rows = []
    for (bits, group), units in sorted(held.items()):
        if (bits, group) == usual:
            shown = f"{len(units)} others" if len(held) > 1 else f"all {len(units)}"
        else:
            by_layer: dict[str, list[str]] = {}
            for unit in units:
                by_layer.setdefault("+".join(unit["layers"]), []).append(str(unit["block"]))
            shown = "; ".join(f"{name} of {', '.join(blocks)}" for name, blocks in by_layer.items())
        rows.append((f"{bits} bits {'a row' if group == -1 else f'g{group}'}", shown))
    return rows


def _bits(config: ModelConfig, layers: Sequence[str], rounding: Rounding) -> int:
    sizes = shapes(config)
    return sum(packed_bits(*sizes[name], rounding.bits, rounding.group) for name in layers)


def _weights(config: ModelConfig) -> int:
    return config.num_layers * sum(outputs * inputs for outputs, inputs in shapes(config).values())
