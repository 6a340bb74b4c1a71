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
LEAST_SCALE = 2.0**-24  # the smallest float16
_CLIPS = 7


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
            code = nearest_codes(line, scales, zeros, bits)
            self.codes[at] = code.to(torch.uint8)
            self.errors[at] = (line - (code - zeros) * scales) / self.carry[at, at]
            self.values[at + 1 :].addr_(self.carry[at, at + 1 :], self.errors[at], alpha=-1)


def nearest_codes(values: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """Codes, as floats, whose scale (code - zero) is nearest to each of values [n, out]; the others [out]."""
    return (values / scales).round_().add_(zeros).clamp_(0, (1 << bits) - 1)


def group_grid(
    lines: Tensor, share: Tensor, bits: int, *, symmetric: bool, clip: bool
) -> tuple[Tensor, Tensor]:
    """Scale and zero of each output, float32 [out], for the lines of a group [count, out].

    share: [count], what a squared error in each line costs. Among the whole range and, with `clip`, six
    ranges that leave out 5 to 30 % of it, the one of least cost. Scales are as float16 holds them, infinite
    where it cannot; zeros are the middle code, or from 1 on (quant.gptq_rounding).
    """
    lines, share = lines.float().contiguous(), share.float().contiguous()
    count, outputs = lines.shape
    if share.shape != (count,):
        raise UnsupportedError(f"{tuple(share.shape)} shares for {count} lines.")
    scales, zeros = torch.empty(outputs), torch.empty(outputs)
    clips = _CLIPS if clip else 1
    if lines.device.type == "cpu" and native.ready():
        addresses = (tensor.data_ptr() for tensor in (lines, share, scales, zeros))
        native.extension().grid(*addresses, count, outputs, clips, (1 << bits) - 1, symmetric)
        return scales, zeros
    low, high = lines.amin(0).clamp(max=0), lines.amax(0).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    empty = high == low
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    best = torch.full_like(low, torch.inf)
    for step in range(clips):
        kept = 1 - 0.05 * step
        scale, zero = _step(low * kept, high * kept, (1 << bits) - 1, symmetric)
        code = nearest_codes(lines, scale, zero, bits)
        cost = (lines - (code - zero) * scale).square_().mul_(share[:, None]).sum(0)
        better = cost < best if step else torch.ones_like(empty)
        for chosen, new in ((best, cost), (scales, scale), (zeros, zero)):
            torch.where(better, new, chosen, out=chosen)
    return scales, zeros


def _step(low: Tensor, high: Tensor, top: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """As the original's quantizer (reference: model section 10), the scale as float16 will hold it."""
    scale = ((high - low) / top).half().float().clamp(min=LEAST_SCALE)
    if symmetric:
        return scale, torch.full_like(scale, (top + 1) // 2)
    zero = (-low / scale).round()
    # Stored minus one, a zero of 0 would be read as 0 by some engines and as 16 by others: leave it out.
    none = zero < 1
    scale = torch.where(none, (high / (top - 1)).half().float().clamp(min=LEAST_SCALE), scale)
    return scale, zero.clamp(1, top)
