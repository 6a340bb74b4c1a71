"""What was asked for: by which method, how finely, on which calibration texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from qwenkit.core import RequestError, UnsupportedError
from qwenkit.model import ModelConfig
from qwenkit.quant.gptq_rounding import Rounding
from qwenkit.quantize.budget import Budget
from qwenkit.quantize.layers import shapes

Method = Literal["gptq", "rtn"]
BUILTIN = "builtin"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """method: "gptq", or "rtn", which rounds to nearest and uses no calibration. calibration: a file, a
    folder, or "builtin"; samples: texts of it at most, each cut to `length` tokens. dtype: to compute in.
    budget: layers that are worth it are rounded finer than `rounding` says, as far as it goes. correction:
    share of what rounding the layers before changed that a layer makes up for, 0 to 1 (see `drift`).
    """

    method: Method = "gptq"
    rounding: Rounding = field(default_factory=Rounding)
    budget: Budget | None = None
    calibration: str = BUILTIN
    samples: int = 128
    length: int = 1024
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    correction: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise RequestError(f"Unknown method {self.method!r}.", "Choose gptq or rtn.")
        if self.dtype not in ("bfloat16", "float32"):
            raise RequestError(f"Computing in {self.dtype!r}.", "Choose bfloat16 or float32.")
        if self.budget is not None and self.rounding.bits != 4:
            raise RequestError(
                f"A budget, and {self.rounding.bits} bits.", "Leave --bits out: a budget chooses the bits."
            )
        if not 0 <= self.correction <= 1:
            raise RequestError(f"correction={self.correction:g}.", "It is a share, from 0 to 1.")
        for name in ("samples", "length"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name}={getattr(self, name)}.", "It must be at least 1.")

    def check(self, config: ModelConfig) -> None:
        """Raise UnsupportedError naming the layer whose shape does not divide."""
        if self.length > config.context_length:
            raise RequestError(
                f"Texts of {self.length} tokens, but the model reads {config.context_length}.",
                "Choose a shorter --length.",
            )
        for name, (outputs, inputs) in shapes(config).items():
            try:
                self.rounding.check(inputs)
            except UnsupportedError as error:
                raise UnsupportedError(f"{name}: {error.problem}", error.remedy) from error
            per_word = 32 // self.rounding.bits
            if outputs % per_word or inputs % per_word:
                raise UnsupportedError(
                    f"{name} has {outputs} outputs and {inputs} inputs; GPTQ packs {per_word} to a word.",
                    "The format cannot hold this shape.",
                )

    def described(self) -> dict[str, Any]:
        """As JSON, for the report and to tell one command from another."""
        return asdict(self)

    def quantize_config(self, dynamic: Mapping[str, Any]) -> dict[str, Any]:
        """quantize_config.json as AutoGPTQ and its heirs write it (reference: model section 10)."""
        rounding = self.rounding
        return {
            **({"dynamic": dict(dynamic)} if dynamic else {}),
            "quant_method": "gptq",
            "bits": rounding.bits,
            "group_size": rounding.group,
            "damp_percent": rounding.damping,
            "desc_act": rounding.act_order,
            "static_groups": False,
            "sym": rounding.symmetric,
            "true_sequential": True,
            "lm_head": False,
            "checkpoint_format": "gptq",
            "model_name_or_path": None,
            "model_file_base_name": "model",
        }
