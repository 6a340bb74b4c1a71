"""Numeric operators behind one small interface; they know nothing of models or requests."""

from qwenkit.kernels.dispatch import (
    add_rms_norm,
    apply_rotary,
    choose_tokens,
    likely_tokens,
    paged_layer,
    rms_norm,
    runs_native,
    silu_gate,
)
from qwenkit.kernels.native import explain
from qwenkit.kernels.reference import affine_dequantize, affine_linear, attention
from qwenkit.kernels.reference_sampling import Draw

__all__ = [
    "Draw",
    "add_rms_norm",
    "affine_dequantize",
    "affine_linear",
    "apply_rotary",
    "attention",
    "choose_tokens",
    "explain",
    "likely_tokens",
    "paged_layer",
    "rms_norm",
    "runs_native",
    "silu_gate",
]
