"""How a GPTQ checkpoint was quantized: quantize_config.json, or quantization_config in config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwenkit.checkpoint.json_file import read_json_if_any
from qwenkit.core import CheckpointError, UnsupportedError

_ZEROS_MINUS_ONE = {"gptq": True, "gptq_v2": False}


@dataclass(frozen=True)
class GPTQConfig:
    """bits a code, inputs sharing a scale (-1: all of them), and whether zero points are stored minus one.

    fields: all that the files say, of which the rest is for whoever quantizes again.
    """

    bits: int
    group_size: int
    zeros_minus_one: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

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
        return f"GPTQ int{self.bits} " + ("per channel" if self.group_size == -1 else f"g{self.group_size}")


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
    bits, group_size = raw.get("bits"), raw.get("group_size", -1)
    if type(bits) is not int or type(group_size) is not int or (group_size < 1 and group_size != -1):
        raise CheckpointError(
            f"{file}: bits={bits!r}, group_size={group_size!r}.", "Download the file again."
        )
    if bits not in (4, 8):
        raise UnsupportedError(
            f"{file}: GPTQ weights of {bits} bits.",
            "qwenkit reads 4 and 8 bits; take another quantization or the 16-bit checkpoint.",
        )
    packing = raw.get("checkpoint_format") or "gptq"
    if packing not in _ZEROS_MINUS_ONE:
        raise UnsupportedError(
            f"{file}: GPTQ weights packed as {packing!r}.",
            f"qwenkit reads {' and '.join(_ZEROS_MINUS_ONE)}; save the checkpoint in one of these.",
        )
    return GPTQConfig(bits, group_size, _ZEROS_MINUS_ONE[packing])
