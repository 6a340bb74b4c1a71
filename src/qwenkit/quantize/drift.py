"""How rounding the layers before changed a layer's inputs, and the weight that makes up for some of it.

Arai and Ichikawa, "Quantization Error Propagation", 2025 (arXiv 2504.09629): with x0 an input as the original
has it and x the same one as it is now, W + W D H^-1 comes nearest to giving W x0 for x; D is the mean of
(x0 - x) x^T and H that of x x^T. Calibration shows more of that than is true of other texts, so a layer goes
a share of the way, and H is damped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.quantize.moments import product

_DAMPING = 0.2  # share of the mean of H's diagonal, added to it


class Drift:
    """Grows by `add`; `mean` is float32 [size, size]."""

    def __init__(self, size: int) -> None:
        self._sum = torch.zeros(size, size)
        self._tokens = 0

    def add(self, original: Tensor, x: Tensor) -> None:
        """The same inputs before and now: [n, size] both, one line a token."""
        self._sum += product((original.float() - x.float()).t(), x.t())
        self._tokens += len(x)

    def mean(self) -> Tensor:
        """D. Ends the adding: the sums become the result in place."""
        return self._sum.div_(max(self._tokens, 1))


class Correction:
    """share: how far a weight goes towards what gives the original's outputs; moments: H, drift: D."""

    def __init__(self, moments: Tensor, drift: Tensor, share: float) -> None:
        self._drift, self._share = drift, share
        damped = moments.clone()
        damped.diagonal().add_(_DAMPING * float(moments.diagonal().mean()))
        self._lower = damped.mT  # symmetric as yet; stored by columns LAPACK needs no copy
        failed = torch.empty((), dtype=torch.int32)
        torch.linalg.cholesky_ex(self._lower, out=(self._lower, failed))
        self._possible = not failed

    def applied(self, weight: Tensor) -> Tensor:
        """weight [out, in] -> float32 [out, in]. Raises UnsupportedError for inputs that are no positive
        definite second moments."""
        if not self._possible:
            raise UnsupportedError(
                "The second moments of the inputs are not positive definite: no correction.",
                "Give more calibration text, or --correction 0.",
            )
        weight = weight.detach().float()
        towards = torch.cholesky_solve((weight @ self._drift).mT, self._lower).mT
        return weight + self._share * towards
