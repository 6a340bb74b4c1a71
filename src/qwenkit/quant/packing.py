"""What becomes of a model's linear layers at loading: kept in 16 bits, rounded to 8 or 4, or as stored.

Knows modules and number formats, no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import nn

from qwenkit.core import RequestError, UnsupportedError
from qwenkit.kernels import native
from qwenkit.kernels.native import Activations
from qwenkit.quant.affine import AffineLinear, FusedLinear
from qwenkit.quant.gptq import unpack_nibbles
from qwenkit.quant.packed import PackedBf16Linear, PackedLinear
from qwenkit.quant.rtn import round_to_nearest

Weights = Literal["auto", "exact", "bf16", "int8", "int4"]
Head = Literal["auto", "bf16", "int8", "int4"]

_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Packing:
    """How linear layers (`weights`) and the output projection (`head`) are held.

    weights: "auto" takes what the checkpoint stores, in the form that runs fastest; "exact" the stored
    values as floats, or as codes whose products keep 16-bit inputs; "bf16" bfloat16; "int8" and "int4"
    round a 16-bit checkpoint (see `round_to_nearest`). head: "auto" is int8 where weights are rounded, else
    as stored.
    """

    weights: Weights = "auto"
    head: Head = "auto"

    @classmethod
    def parse(cls, weights: str, head: str = "auto") -> Packing:
        """From a person's words. Raises RequestError that lists the choices."""
        for name, value, known in (
            ("weights", weights, get_args(Weights)),
            ("head", head, get_args(Head)),
        ):
            if value not in known:
                raise RequestError(f"{name}={value!r}.", f"Choose one of {', '.join(known)}.")
        return cls(cast(Weights, weights), cast(Head, head))

    def check(self, quantization: str) -> None:
        """Raise RequestError if a checkpoint stored so (Checkpoint.quantization) cannot be had like this.

        Rounding rounded weights again would only lose precision.
        """
        stored = quantization.partition(" (")[0]
        if stored == "none" or self.weights in ("auto", "exact"):
            return
        if stored.startswith("GGUF") and (
            self.weights == "bf16" or stored.split()[1] in ("F32", "F16", "BF16")
        ):
            return
        if stored.startswith(f"GPTQ {self.weights} "):
            return
        raise RequestError(
            f"The checkpoint is {stored}; its weights cannot become {self.weights}.",
            "Leave out weights to run it as it is, or take the 16-bit checkpoint.",
        )

    def dtype_for(self, dtype: str | torch.dtype) -> str | torch.dtype:
        """What to compute in; bf16 weights ask for bfloat16. Raises RequestError if dtype is another."""
        if self.weights != "bf16" or dtype in ("bfloat16", torch.bfloat16):
            return dtype
        if dtype != "auto":
            raise RequestError(f"weights='bf16' with dtype={dtype!r}.", "Give one of them.")
        return "bfloat16"

    def keeps_codes(self, name: str) -> bool:
        """Whether the module `name` runs on the integer codes of a GGUF."""
        return self.weights == "auto" and (name != "lm_head" or self.head == "auto")

    @property
    def activations(self) -> Activations:
        return "16bit" if self.weights == "exact" else "int8"

    def rounds(self, name: str) -> int | None:
        """Bits that the float weight of the module `name` is rounded to; None leaves it."""
        if name != "lm_head":
            return _BITS.get(self.weights)
        head = self.head
        if head == "auto" and self.weights in _BITS:
            head = "int8"
        return _BITS.get(head)

    @property
    def rounds_any(self) -> bool:
        return self.rounds("lm_head") is not None or self.weights in _BITS

    def pack(self, name: str, module: nn.Module) -> nn.Module | None:
        """The packed twin of a linear layer, None for other modules and for those already packed.

        Raises UnsupportedError where no native kernel holds its values.
        """
        if isinstance(module, AffineLinear):
            return PackedLinear.from_codes(
                unpack_nibbles(module.codes) if module.bits == 4 else module.codes,
                module.scales,
                bits=module.bits,
                group_of_column=module.group_of_column,
                zeros=module.zeros,
                bias=module.bias,
                activations=self.activations,
            )
        if isinstance(module, FusedLinear):
            parts = [self.pack(name, part) or part for part in module.parts]
            return FusedLinear(parts)
        if not isinstance(module, nn.Linear):
            return None
        bits = self.rounds(name)
        if bits is not None:
            return PackedLinear.from_affine(round_to_nearest(module.weight, bits), module.bias)
        if name == "lm_head" and self.head == "bf16":
            module.weight = nn.Parameter(module.weight.detach().bfloat16(), requires_grad=False)
        if module.weight.dtype != torch.bfloat16:
            words = str(module.weight.dtype).removeprefix("torch.")
            raise UnsupportedError(f"{words} weights have no native kernel.", "Load with dtype='bfloat16'.")
        return PackedBf16Linear.from_linear(module)

    def round_in_place(self, name: str, module: nn.Module) -> bool:
        """Where no kernel runs codes, give a float layer the values they stand for. Whether it was done."""
        bits = self.rounds(name)
        if bits is None or not isinstance(module, nn.Linear):
            return False
        weight = module.weight
        values = round_to_nearest(weight.detach().cpu(), bits).dequantize(weight.dtype)
        module.weight = nn.Parameter(values.to(weight.device), requires_grad=False)
        return True


def why_not_native(device: torch.device) -> str | None:
    """Why the native kernels cannot run a model on this device; None if they can."""
    if device.type != "cpu":
        return f"the device is {device}"
    return None if native.ready() else native.explain().splitlines()[0].removeprefix("kernels: ")
