"""How a GPTQ checkpoint was quantized: quantize_config.json, or quantization_config in config.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwenkit.checkpoint.gptq_rules import Rule, rule_of
from qwenkit.checkpoint.json_file import read_json_if_any
from qwenkit.core import CheckpointError, UnsupportedError
from qwenkit.quant.gptq import packed_bits

_ZEROS_MINUS_ONE = {"gptq": True, "gptq_v2": False}


@dataclass(frozen=True)
class GPTQConfig:
    """bits a code, inputs sharing a scale (-1: all of them), and whether zero points are stored minus one.

    rules: for modules packed otherwise, see `of`. fields: all that the files say, of which the rest is for
    whoever quantizes again.
    """

    bits: int
    group_size: int
    zeros_minus_one: bool = True
    rules: tuple[Rule, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def of(self, module: str) -> GPTQConfig | None:
        """How one module, by its stored name, is packed; None if a rule leaves it in floats."""
        rule = rule_of(self.rules, module)
        if rule is None:
            return replace(self, rules=())
        if rule.fields is None:
            return None
        bits, group_size = (rule.fields.get(key, getattr(self, key)) for key in ("bits", "group_size"))
        return replace(self, bits=bits, group_size=group_size, rules=())

    def to_dict(self) -> dict[str, Any]:
        """The fields for a folder whose weights are in model*.safetensors, zero points minus one."""
        written = {**self.fields, "quant_method": "gptq", "bits": self.bits, "group_size": self.group_size}
        for key, value in (("checkpoint_format", "gptq"), ("model_file_base_name", "model")):
            if key in written:
                written[key] = value
        return written

    def groups(self, in_features: int) -> int:
        return 1 if self.group_size == -1 else -(-in_features // self.group_size)

    def __str__(self) -> str:
        return _words([self.bits], [self.group_size])

    def described(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """In words, with the mean bits of a weight where not all have the same. shapes: of stored tensors."""
        if not self.rules:
            return str(self)
        kinds, bits, weights = set(), 0, 0
        for name, shape in shapes.items():
            module, _, kind = name.rpartition(".")
            own = self.of(module) if kind == "qweight" and len(shape) == 2 else None
            if own is not None:
                inputs, outputs = shape[0] * 32 // own.bits, shape[1]
                kinds.add((own.bits, own.group_size))
                bits += packed_bits(outputs, inputs, own.bits, own.group_size)
                weights += outputs * inputs
        if len(kinds) < 2:
            return _words(*([value] for value in kinds.pop())) if kinds else str(self)
        words = _words(*({kind[at] for kind in kinds} for at in (0, 1)))
        return f"{words}, {bits / weights:.2f} bits a weight"


def _words(bits: Iterable[int], groups: Iterable[int]) -> str:
    shown = ("per channel" if group == -1 else f"g{group}" for group in sorted(groups))
    return f"GPTQ {'/'.join(f'int{one}' for one in sorted(bits))} {'/'.join(shown)}"


def read_gptq_config(folder: Path, config: Mapping[str, Any]) -> GPTQConfig | None:
    """None for a checkpoint that is not quantized.

    Raises UnsupportedError for other methods, widths or packings, CheckpointError for invalid values or
    when the two places contradict each other.
    """
    inside = config.get("quantization_config")
    beside = read_json_if_any(folder / "quantize_config.json")
    found = []
    if inside is not None:
        found.append(_parse(inside, folder / "config.json"))
    if beside is not None:
        found.append(_parse(beside, folder / "quantize_config.json"))
    if len(found) == 2 and found[0] != found[1]:
        raise CheckpointError(
            f"{folder}: config.json says {found[0]}, quantize_config.json says {found[1]}.",
            "Keep the one that came with the weights.",
        )
    if not found:
        return None
    return replace(found[0], fields={**(inside or {}), **(beside or {})})


def _parse(raw: Any, file: Path) -> GPTQConfig:
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{file}: the quantization config is not an object.", "Download it again.")
    method = raw.get("quant_method", "gptq")
    if method != "gptq":
        raise UnsupportedError(
            f"{file}: weights quantized by {method!r}.",
            "qwenkit reads GPTQ and GGUF; or take the 16-bit checkpoint.",
        )
    bits, group_size = _numbers(raw, str(file))
    packing = raw.get("checkpoint_format") or "gptq"
    if packing not in _ZEROS_MINUS_ONE:
        raise UnsupportedError(
            f"{file}: GPTQ weights packed as {packing!r}.",
            f"qwenkit reads {' and '.join(_ZEROS_MINUS_ONE)}; save the checkpoint in one of these.",
        )
    return GPTQConfig(bits, group_size, _ZEROS_MINUS_ONE[packing], _rules(raw, bits, group_size, file))


def _rules(raw: Mapping[str, Any], bits: int, group_size: int, file: Path) -> tuple[Rule, ...]:
    dynamic = raw.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        raise CheckpointError(f"{file}: 'dynamic' is not an object.", "Download the file again.")
    rules = []
    for key, value in dynamic.items():
        where = f"{file}, dynamic {key!r}"
        if not isinstance(value, Mapping):
            raise CheckpointError(f"{where}: {value!r} is not an object.", "Download the file again.")
        try:
            rule = Rule.parse(key, value)
        except ValueError as error:
            raise CheckpointError(f"{where}: {error}.", "Download the file again.") from error
        if rule.fields is not None:
            _numbers({"bits": bits, "group_size": group_size, **rule.fields}, where)
        rules.append(rule)
    return tuple(rules)


def _numbers(raw: Mapping[str, Any], where: str) -> tuple[int, int]:
    """bits and group_size, if they are ones that can be read."""
    bits, group_size = raw.get("bits"), raw.get("group_size", -1)
    if type(bits) is not int or type(group_size) is not int or (group_size < 1 and group_size != -1):
        raise CheckpointError(
            f"{where}: bits={bits!r}, group_size={group_size!r}.", "Download the file again."
        )
    if bits not in (4, 8):
        raise UnsupportedError(
            f"{where}: GPTQ weights of {bits} bits.",
            "qwenkit reads 4 and 8 bits; take another quantization or the 16-bit checkpoint.",
        )
    return bits, group_size
