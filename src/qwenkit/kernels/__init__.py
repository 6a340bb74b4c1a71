"""Numeric operators behind one small interface; they know nothing of models or requests."""

from qwenkit.kernels.dispatch import (
    add_rms_norm,
    apply_rotary,
    paged_layer,
    rms_norm,
    runs_native,
    silu_gate,
)
from qwenkit.kernels.native import explain
from qwenkit.kernels.reference import affine_dequantize, affine_linear, attention

__all__ = [
    "add_rms_norm",
    "affine_dequantize",
    "affine_linear",
    "apply_rotary",
    "attention",
    "explain",
    "paged_layer",
    "rms_norm",
    "runs_native",
    "silu_gate",
]
