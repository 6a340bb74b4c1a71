"""Numeric operators behind one small interface; they know nothing of models or requests."""

from qwenkit.kernels.reference import (
    affine_dequantize,
    affine_linear,
    apply_rotary,
    attention,
    rms_norm,
    silu_gate,
)

__all__ = ["affine_dequantize", "affine_linear", "apply_rotary", "attention", "rms_norm", "silu_gate"]
