"""Sharing the cores between torch and the native kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qwenkit.quant import PackedBf16Linear, PackedLinear


def uses_native_pool(model: nn.Module) -> bool:
    """Whether most of the model's work is done by the kernels' own threads."""
    return any(isinstance(module, (PackedBf16Linear, PackedLinear)) for module in model.modules())


@contextmanager
def one_torch_thread(active: bool) -> Iterator[None]:
    """Inside, torch computes on the calling thread alone, if `active`; the former number comes back after.

    OpenMP threads go on spinning after each small operator and take the cores from the kernels' pool: on two
    cores a decoding step of the demo model takes 84 ms with two torch threads and 67 ms with one.
    """
    before = torch.get_num_threads()
    if not active or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
