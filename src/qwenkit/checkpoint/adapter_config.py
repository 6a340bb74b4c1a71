"""adapter_config.json of a LoRA adapter: what decides the merged weights; the unknown is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwenkit.checkpoint.json_file import read_json
from qwenkit.core import CheckpointError, UnsupportedError

FILE = "adapter_config.json"

_KEEP_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin a training that leave the base as it is; the others train against a changed base."""
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "alpha_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip
"""Fields that are read here, are seen in the tensors, or were about the training alone. peft takes
fan_in_fan_out for False where a layer is linear, and all of Qwen's are."""

Names = str | Sequence[str] | None
"""A pattern for whole names, or their ends, as peft has them."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """rank and alpha hold for every module that no pattern names; rslora: alpha is divided by the root of
    the rank; dora: weights are given new lengths; targets, excluded, layers: which modules have an adapter;
    whole: modules that were trained as a whole; base: what it was trained on, as its trainer named it.
    """

    rank: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    tied: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    targets: Names = None
    excluded: Names = None
    layers: Sequence[int] | None = None
    whole: Sequence[str] = ()
    base: str = ""

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_pattern(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        """What B A is multiplied by: alpha / rank, or alpha / sqrt(rank)."""
        rank, alpha = self.rank_of(module), self.alpha_pattern.get(_pattern(self.alpha_pattern, module))
        alpha = self.alpha if alpha is None else alpha
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def targets_module(self, module: str) -> bool:
        """Whether training gave this linear layer or embedding an adapter, as far as the file tells."""
        if self.targets is None or (self.excluded and _named(self.excluded, module)):
            return False
        number = re.search(r"\.(\d+)\.", module)
        if self.layers is not None and (number is None or int(number[1]) not in self.layers):
            return False
        if self.targets == "all-linear":
            return number is not None
        return _named(self.targets, module)

    def trains_whole(self, entry: str, module: str) -> bool:
        """Whether `entry` of modules_to_save means this module."""
        return module == entry or module.endswith(f".{entry}")


def read_lora_config(folder: Path) -> LoRAConfig:
    """Raises CheckpointError for a missing file or invalid values, UnsupportedError naming a method or a
    field that would change the weights in a way that is not known here."""
    file = folder / FILE
    if not file.exists():
        raise CheckpointError(
            f"{folder} is no LoRA adapter: it has no {FILE}.",
            "Give the folder that peft's save_pretrained wrote.",
        )
    raw = read_json(file)
    method = raw.get("peft_type")
    if method != "LORA":
        raise UnsupportedError(f"{file}: peft_type is {method!r}.", "Only LORA adapters are merged.")
    start = raw.get("init_lora_weights", True)
    if start not in _KEEP_THE_BASE:
        raise UnsupportedError(
            f"{file}: init_lora_weights is {start!r}, which changes the base before training.",
            "Convert it with save_pretrained(..., path_initial_model_for_weight_conversion=...) of peft.",
        )
    for key, value in raw.items():
        if key not in _WITHOUT_EFFECT and value not in (None, False, [], {}, ""):
            raise UnsupportedError(
                f"{file}: {key} is {value!r}, and what it does to the weights is not known here.",
                "Merge this adapter with peft; or remove the field if you know that it does nothing.",
            )
    return LoRAConfig(
        rank=_number(raw, "r", file, int),
        alpha=_number(raw, "lora_alpha", file, (int, float)),
        rslora=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
        tied=bool(raw.get("ensure_weight_tying")),
        rank_pattern=_patterns(raw, "rank_pattern", file, int),
        alpha_pattern=_patterns(raw, "alpha_pattern", file, (int, float)),
        targets=_names(raw, "target_modules", file),
        excluded=_names(raw, "exclude_modules", file),
        layers=_layers(raw, file),
        whole=_list(_names(raw, "modules_to_save", file)),
        base=str(raw.get("base_model_name_or_path") or ""),
    )


def _pattern(patterns: Mapping[str, Any], module: str) -> str:
    """The first one that the whole name, or its end, matches; as peft looks it up."""
    for pattern in patterns:
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return pattern
    return ""


def _named(names: str | Sequence[str], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _number(raw: Mapping[str, Any], key: str, file: Path, kind: Any) -> Any:
    value = raw.get(key, 8)  # peft's default for both
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < abs(value) < math.inf:
        raise CheckpointError(f"{file}: {key} is {value!r}.", "It must be a number, the rank above 0.")
    if key == "r" and value < 1:
        raise CheckpointError(f"{file}: {key} is {value!r}.", "The rank must be at least 1.")
    return value


def _patterns(raw: Mapping[str, Any], key: str, file: Path, kind: Any) -> dict[str, Any]:
    value = raw.get(key) or {}
    good = isinstance(value, dict) and all(
        isinstance(one, kind) and not isinstance(one, bool) and 0 < one < math.inf for one in value.values()
    )
    if not good:
        raise CheckpointError(
            f"{file}: {key} is {value!r}.", "It must give a positive number to each pattern."
        )
    for pattern in value:
        _check_pattern(pattern, key, file)
    return dict(value)


def _names(raw: Mapping[str, Any], key: str, file: Path) -> Names:
    value = raw.get(key)
    if value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        return value
    if isinstance(value, str):
        _check_pattern(value, key, file)
        return value
    raise CheckpointError(f"{file}: {key} is {value!r}.", "It must be a list of names or a pattern.")


def _list(names: Names) -> Sequence[str]:
    return [names] if isinstance(names, str) else names or ()


def _layers(raw: Mapping[str, Any], file: Path) -> Sequence[int] | None:
    value = raw.get("layers_to_transform")
    value = [value] if type(value) is int else value
    if value is None or (isinstance(value, list) and all(type(one) is int for one in value)):
        return value
    raise CheckpointError(f"{file}: layers_to_transform is {value!r}.", "It must be numbers of layers.")


def _check_pattern(pattern: str, key: str, file: Path) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(
            f"{file}: {key} has the pattern {pattern!r} ({error}).", "Correct the pattern."
        ) from error
