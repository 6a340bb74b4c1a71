"""GPTQModel's `dynamic`: linear layers that are quantized otherwise than the rest, or not at all.

An object of regular expressions with an object of fields each. The first expression that matches a module's
stored name, from its start but not to its end, decides: its fields replace those of the config. "+:" before
an expression changes nothing, "-:" leaves the modules in floats. vLLM and SGLang read it alike, but ask for
the names of their fused modules (qkv_proj, gate_up_proj): the rules written here match these as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenkit.checkpoint.names import Layout, stored_modules
from qwenkit.core import UnsupportedError

Fields = Mapping[str, Any]

_BLOCK = {"qwen-v1": r"transformer\.h", "qwen2": r"model\.layers"}
_NAMES = {
    "qwen-v1": {
        ("attn.c_attn",): r"attn\.c_attn",
        ("attn.c_proj",): r"attn\.c_proj",
        ("mlp.w1", "mlp.w2"): r"mlp\.(?:w1|w2|gate_up_proj)",
        ("mlp.w1",): r"mlp\.w1",
        ("mlp.w2",): r"mlp\.w2",
        ("mlp.c_proj",): r"mlp\.c_proj",
    },
    "qwen2": {
        ("attn.c_attn",): r"self_attn\.(?:q|k|v|qkv)_proj",
        ("attn.c_proj",): r"self_attn\.o_proj",
        ("mlp.w1", "mlp.w2"): r"mlp\.(?:up|gate|gate_up)_proj",
        ("mlp.w1",): r"mlp\.up_proj",
        ("mlp.w2",): r"mlp\.gate_proj",
        ("mlp.c_proj",): r"mlp\.down_proj",
    },
}


@dataclass(frozen=True)
class Rule:
    """What a regular expression does to the modules it matches; fields None: they stay floats."""

    pattern: str
    fields: Fields | None

    @classmethod
    def parse(cls, key: str, value: Fields) -> Rule:
        """Raises ValueError saying what is wrong."""
        pattern = key.removeprefix("-:").removeprefix("+:")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression ({error})") from error
        return cls(pattern, None if key.startswith("-:") else value)


def rule_of(rules: Sequence[Rule], module: str) -> Rule | None:
    """The one that decides how the stored module is packed, None for a module like most."""
    return next((rule for rule in rules if re.match(rule.pattern, module)), None)


def dynamic_of(layout: Layout, fields: Mapping[str, Fields | None]) -> dict[str, dict[str, Any]]:
    """`dynamic` for a folder of `layout`: canonical module -> its fields, None for floats.

    Modules that are not named are like most. One expression for each layer of a block and set of fields.
    """
    blocks: dict[tuple[tuple[str, ...], str], list[str]] = {}
    written: dict[str, dict[str, Any]] = {}

    def rule(pattern: str, value: str) -> None:
        found: dict[str, Any] | None = json.loads(value)
        written[("-:" if found is None else "+:") + pattern + "$"] = found or {}

    by_block: dict[str, dict[str, str]] = {}
    for module, own in fields.items():
        value = json.dumps(own if own is None else dict(own), sort_keys=True)
        inner = re.fullmatch(r"transformer\.h\.(\d+)\.(.+)", module)
        if inner is None:
            (stored,) = stored_modules(layout, 0)[module]
            rule(re.escape(stored), value)
        else:
            by_block.setdefault(inner[1], {})[inner[2]] = value
    for number, layers in by_block.items():
        gate, up = layers.get("mlp.w2"), layers.get("mlp.w1")
        for name, value in layers.items():
            together = name in ("mlp.w1", "mlp.w2") and gate == up
            if not together or name == "mlp.w1":
                key = ("mlp.w1", "mlp.w2") if together else (name,)
                blocks.setdefault((key, value), []).append(number)
    for (names, value), numbers in blocks.items():
        rule(rf"{_BLOCK[layout]}\.(?:{'|'.join(numbers)})\.{_NAMES[layout][names]}", value)
    return written


def rewritten(rules: Sequence[Rule], source: Layout, to: Layout, layers: int) -> dict[str, dict[str, Any]]:
    """`dynamic` that says of each module under its names in `to` what `rules` say of it in `source`.

    Raises UnsupportedError for parts of one module that rules tell apart.
    """
    fields: dict[str, Fields | None] = {}
    for module, parts in stored_modules(source, layers).items():
        found = [rule_of(rules, part) for part in parts]
        first = found[0]
        if any((rule and rule.fields) != (first and first.fields) for rule in found) or any(
            (rule is None) != (first is None) for rule in found
        ):
            raise UnsupportedError(
                f"The rules of `dynamic` differ for {', '.join(parts)}, so they cannot be one tensor.",
                "Keep the Qwen2 layout, which stores them apart.",
            )
        if first is not None and module.rpartition(".")[2] not in ("wte", "ln_f", "ln_1", "ln_2"):
            fields[module] = first.fields
    return dynamic_of(to, fields)
