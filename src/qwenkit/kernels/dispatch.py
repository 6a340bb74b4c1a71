"""Which of two implementations runs: the compiled one where it can, else plain torch.

The compiled kernels compute on the CPU and keep no graph, so they serve inference only; training, other
devices and other dtypes take the reference. `native.explain()` says what was built and why.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qwenkit.kernels import native, native_sampling, reference, reference_sampling
from qwenkit.kernels.key_form import KeyForm
from qwenkit.kernels.native_paged import NativePagedLayer, why_not
from qwenkit.kernels.nibbles import TorchNibbleLayer
from qwenkit.kernels.paged import PagedLayer, PagedShape, TorchPagedLayer
from qwenkit.kernels.reference_sampling import Chosen, Draw, Likely


def runs_native(*tensors: Tensor) -> bool:
    """Whether the compiled kernels may take these: gradients off, all on the CPU and of one known dtype."""
    first = tensors[0]
    return (
        not torch.is_grad_enabled()
        and all(t.device.type == "cpu" and t.dtype == first.dtype for t in tensors)
        and first.dtype in native.TYPES
        and native.ready()
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See reference.rms_norm."""
    if runs_native(x, weight):
        return native.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See reference.add_rms_norm."""
    if runs_native(x, residual, weight):
        return native.add_rms_norm(x, residual, weight, eps)
    return reference.add_rms_norm(x, residual, weight, eps)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See reference.apply_rotary."""
    if runs_native(x):
        return native.apply_rotary(x, cos, sin)
    return reference.apply_rotary(x, cos, sin)


def silu_gate(up: Tensor, gate: Tensor) -> Tensor:
    """See reference.silu_gate."""
    if runs_native(up, gate):
        return native.silu_gate(up, gate)
    return reference.silu_gate(up, gate)


def paged_layer(
    shape: PagedShape,
    device: torch.device | str = "cpu",
    keys: KeyForm | None = None,
    beside: PagedLayer | None = None,
) -> PagedLayer:
    """The keys and values of one layer; `kernel` of the result says which implementation it is.

    keys: of the formats FORMED, what its keys have in common. beside: of int4 alone, a layer from here
    that is computed before.
    """
    if torch.device(device).type == "cpu" and why_not(shape) is None:
        return NativePagedLayer(shape, keys, beside if isinstance(beside, NativePagedLayer) else None)
    if shape.format == "int4":
        return TorchNibbleLayer(shape, device, keys, beside if isinstance(beside, TorchNibbleLayer) else None)
    return TorchPagedLayer(shape, device, keys)


def choose_tokens(
    logits: Tensor, draws: Sequence[Draw], *, size: int | None = None, holes: Tensor | None = None
) -> Chosen:
    """See reference_sampling.choose; the tokens are the same wherever they are chosen."""
    if _samples_natively(logits):
        return native_sampling.choose(logits, draws, size=size, holes=holes)
    return reference_sampling.choose(logits, draws, size=size, holes=holes)


def likely_tokens(
    logits: Tensor,
    wanted: Sequence[tuple[int, int, int]],
    *,
    size: int | None = None,
    holes: Tensor | None = None,
) -> list[Likely]:
    """See reference_sampling.log_probabilities."""
    if _samples_natively(logits):
        return native_sampling.log_probabilities(logits, wanted, size=size, holes=holes)
    return reference_sampling.log_probabilities(logits, wanted, size=size, holes=holes)


def _samples_natively(logits: Tensor) -> bool:
    """No gradient passes through a choice, so it does not matter whether they are on."""
    return logits.device.type == "cpu" and logits.dtype in native.TYPES and native.ready()
