"""Replacing the linear layers of a loaded model by packed ones, from outside.

No weight changes its value here: bfloat16 stays bfloat16, GPTQ codes keep their scales and zero points.
"""

from __future__ import annotations

import torch
from torch import nn
from tqdm import tqdm

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native
from qwenkit.quant.affine import AffineLinear
from qwenkit.quant.gptq import unpack_nibbles
from qwenkit.quant.packed import PackedBf16Linear, PackedLinear


def pack_model(model: nn.Module, *, progress: bool = False) -> str | None:
    """Pack every linear layer the native kernels can run, in place, one at a time; the CPU only.

    bfloat16 nn.Linear and AffineLinear are packed; float32 layers and scales that float16 cannot hold stay
    as they are. Returns None if everything was packed, else a sentence saying what was not and why.
    Each weight is freed as soon as its packed form stands, so memory peaks one layer above the result.
    progress: a bar on standard error.
    """
    if not native.ready():
        return native.explain().splitlines()[0].removeprefix("kernels: ")
    left: dict[str, int] = {}
    names = [name for name, _ in model.named_modules()]  # names: a list of modules would keep them all
    for name in tqdm(names, desc="Packing weights", unit="layer", leave=False, disable=not progress):
        try:
            packed = _packed(model.get_submodule(name))
        except UnsupportedError as error:
            left[error.problem] = left.get(error.problem, 0) + 1
            continue
        if packed is not None:
            model.set_submodule(name, packed.eval())
    if not left:
        return None
    return "; ".join(f"{count} layers stay in torch: {why}" for why, count in left.items())


def _packed(module: nn.Module) -> nn.Module | None:
    """The packed twin of a linear layer, None for other modules. Raises UnsupportedError."""
    if isinstance(module, AffineLinear):
        return PackedLinear.from_codes(
            unpack_nibbles(module.codes) if module.bits == 4 else module.codes,
            module.scales,
            bits=module.bits,
            group_of_column=module.group_of_column,
            zeros=module.zeros,
            bias=module.bias,
        )
    if isinstance(module, nn.Linear):
        if module.weight.dtype != torch.bfloat16:
            words = str(module.weight.dtype).removeprefix("torch.")
            raise UnsupportedError(f"{words} weights have no native kernel.", "Load with dtype='bfloat16'.")
        return PackedBf16Linear.from_linear(module)
    return None
