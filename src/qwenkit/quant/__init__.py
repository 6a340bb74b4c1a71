"""Number formats: packed linear layers and the packings checkpoints use. Knows no files."""

from qwenkit.quant.affine import AffineLinear, FusedLinear

__all__ = ["AffineLinear", "FusedLinear"]
