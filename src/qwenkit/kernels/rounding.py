"""Rounding lines of a weight in order, each line's error carried on to those after it: the heart of GPTQ.

Compiled where it can be: in torch it is a few small operators for every line, and each of them waits for all
threads. Knows lines of numbers; where their scales and the shares come from, quant.gptq_rounding knows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native

MOST_LINES = 128  # rounding.h


@dataclass(frozen=True)
class Lines:
    """Inputs of a weight that are rounded together.

    values: float32 [count, outputs], changed as errors reach them; carry: float32 [count, count], upper
    triangular, row i the shares of line i's error; codes uint8, errors float32 [count, outputs]: results.
    All contiguous, at most MOST_LINES.
    """

    values: Tensor
    carry: Tensor
    codes: Tensor
    errors: Tensor

    def __post_init__(self) -> None:
        count, outputs = self.values.shape
        wanted = {
            "values": (torch.float32, (count, outputs)),
            "carry": (torch.float32, (count, count)),
            "codes": (torch.uint8, (count, outputs)),
            "errors": (torch.float32, (count, outputs)),
        }
        for name, (dtype, shape) in wanted.items():
            tensor = getattr(self, name)
            if (tensor.dtype, tuple(tensor.shape), tensor.is_contiguous()) != (dtype, shape, True):
                raise UnsupportedError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {shape}.")
        if count > MOST_LINES:
            raise UnsupportedError(f"{count} lines; at most {MOST_LINES} are rounded together.")

    def round(self, first: int, last: int, scales: Tensor, zeros: Tensor, bits: int) -> None:
        """Round lines first ... last - 1 to scales (code - zeros), [outputs] each, and take what that spoils
        out of all lines after each. errors: divided by the diagonal of carry."""
        if not 0 <= first <= last <= len(self.values) or scales.shape != zeros.shape:
            raise UnsupportedError(f"Lines {first} to {last} of {len(self.values)}.")
        if self.values.device.type == "cpu" and native.ready():
            self._compiled(first, last, scales.float().contiguous(), zeros.float().contiguous(), bits)
        else:
            self._plain(first, last, scales, zeros, bits)

    def _compiled(self, first: int, last: int, scales: Tensor, zeros: Tensor, bits: int) -> None:
        count, outputs = self.values.shape
        if scales.shape != (outputs,):
            raise UnsupportedError(f"{tuple(scales.shape)} scales for {outputs} outputs.")
        tensors = (self.values, self.carry, scales, zeros, self.codes, self.errors)
        addresses = (tensor.data_ptr() for tensor in tensors)
        native.extension().round(*addresses, first, last, count, outputs, (1 << bits) - 1)

    def _plain(self, first: int, last: int, scales: Tensor, zeros: Tensor, bits: int) -> None:
        for at in range(first, last):
            line = self.values[at]
            code = (line / scales).round_().add_(zeros).clamp_(0, (1 << bits) - 1)
            self.codes[at] = code.to(torch.uint8)
            self.errors[at] = (line - (code - zeros) * scales) / self.carry[at, at]
            self.values[at + 1 :].addr_(self.carry[at, at + 1 :], self.errors[at], alpha=-1)
