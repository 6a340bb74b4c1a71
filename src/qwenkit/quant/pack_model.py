"""Replacing the linear layers of a model in memory by packed ones, from outside."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from torch import nn
from tqdm import tqdm

from qwenkit.core import UnsupportedError
from qwenkit.quant.packing import Packing, why_not_native


def pack_model(model: nn.Module, packing: Packing | None = None, *, progress: bool = False) -> str | None:
    """Pack every linear layer the native kernels can run, in place, one at a time.

    By default no weight changes its value. float32 layers and scales that float16 cannot hold stay as they
    are. Returns None if everything was packed, else a sentence saying what was not and why. Where the kernels
    do not run, layers that were to be rounded get the rounded values as floats.
    Each weight is freed as soon as its packed form stands, so memory peaks one layer above the result.
    progress: a bar on standard error.
    """
    packing = packing or Packing()
    tensors = itertools.chain(model.parameters(), model.buffers())
    why_not = why_not_native(next((t.device for t in tensors), torch.device("cpu")))
    left: Counter[str] = Counter()
    rounded = 0
    names = [name for name, _ in model.named_modules()]  # names: a list of modules would keep them all
    for name in tqdm(names, desc="Packing weights", unit="layer", leave=False, disable=not progress):
        if why_not is not None:
            rounded += packing.round_in_place(name, model.get_submodule(name))
            continue
        try:
            packed = packing.pack(name, model.get_submodule(name))
        except UnsupportedError as error:
            left[error.problem] += 1
            continue
        if packed is not None:
            model.set_submodule(name, packed.eval())
    if why_not is not None:
        held = f"; {rounded} layers hold their rounded weights as floats, which saves no memory"
        return why_not + (held if rounded else "")
    return "; ".join(f"{n} layers stay in torch: {why}" for why, n in left.items()) or None
