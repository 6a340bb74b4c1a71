"""Second moments of a layer's inputs, H = mean of x x^T: all that rounding a weight needs of calibration.

On the CPU, bfloat16 inputs are multiplied by the native kernels: exact products summed in float32, several
times faster than float32. Other dtypes, or no kernels: float32 by torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwenkit.kernels import native
from qwenkit.kernels.native import Bf16Weight

_STRIPS = 4  # only blocks on and below the diagonal are computed: 10 of 16


class SecondMoments:
    """Grows by `add`; `mean` is float32 [size, size]."""

    def __init__(self, size: int) -> None:
        self._sum = torch.zeros(size, size)
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """x: [n, size], one line a token."""
        lines = x.t().contiguous()  # [size, n]
        size = len(lines)
        step = -(-size // _STRIPS)
        for first in range(0, size, step):
            strip = slice(first, first + step)
            self._sum[strip, : first + step] += product(lines[strip], lines[: first + step])
        self.tokens += len(x)

    def mean(self) -> Tensor:
        """Symmetric, float32 [size, size]. Ends the adding: the sums become the result in place."""
        size = len(self._sum)
        step = -(-size // _STRIPS)
        for first in range(step, size, step):
            self._sum[:first, first : first + step] = self._sum[first : first + step, :first].t()
        return self._sum.div_(max(self.tokens, 1))


def product(left: Tensor, right: Tensor) -> Tensor:
    """left [m, n] times right [k, n] transposed: float32 [m, k]. The kernels round `left` to bfloat16."""
    if right.dtype == torch.bfloat16 and right.device.type == "cpu" and native.ready():
        return Bf16Weight.pack(right.contiguous()).multiply(left.float().contiguous())
    return left.float() @ right.float().t()
