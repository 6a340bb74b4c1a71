"""Replacing the linear layers of a model in memory by packed ones, from outside."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from torch import nn
from tqdm import tqdm

from qwenkit.core import UnsupportedError
from qwenkit.quant.packing import Packing, why_not_native


class Packer:
    """Applies a Packing to the modules of a model on `device`, and remembers what it had to leave."""

    def __init__(self, packing: Packing, device: torch.device) -> None:
        self.packing = packing
        self._why_not = why_not_native(device)
        self._left: Counter[str] = Counter()
        self._rounded = 0

    def pack(self, model: nn.Module, name: str) -> bool:
        """Replace the module `name` by its packed twin if it is a linear layer the kernels can run.

        Whether it was replaced: then the weight it came with is not needed any more.
        """
        module = model.get_submodule(name)
        if self._why_not is not None:
            self._rounded += self.packing.round_in_place(name, module)
            return False
        try:
            packed = self.packing.pack(name, module)
        except UnsupportedError as error:
            self._left[error.problem] += 1
            return False
        if packed is not None:
            model.set_submodule(name, packed.eval())
        return packed is not None

    def left(self) -> str | None:
        """What was not packed and why, in a sentence; None if everything was."""
        if self._why_not is not None:
            held = f"; {self._rounded} layers hold their rounded weights as floats, which saves no memory"
            return self._why_not + (held if self._rounded else "")
        return "; ".join(f"{n} layers stay in torch: {why}" for why, n in self._left.items()) or None


def pack_model(model: nn.Module, packing: Packing | None = None, *, progress: bool = False) -> str | None:
    """Pack every linear layer the native kernels can run, in place, one at a time.

    By default no weight changes its value. float32 layers and scales that float16 cannot hold stay as they
    are. Returns None if everything was packed, else a sentence saying what was not and why. Where the kernels
    do not run, layers that were to be rounded get the rounded values as floats.
    Each weight is freed as soon as its packed form stands, so memory peaks one layer above the result.
    progress: a bar on standard error.
    """
    tensors = itertools.chain(model.parameters(), model.buffers())
    packer = Packer(packing or Packing(), next((t.device for t in tensors), torch.device("cpu")))
    names = [name for name, _ in model.named_modules()]  # names: a list of modules would keep them all
    for name in tqdm(names, desc="Packing weights", unit="layer", leave=False, disable=not progress):
        packer.pack(model, name)
    return packer.left()
