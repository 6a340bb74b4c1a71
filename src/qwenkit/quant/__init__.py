"""Number formats: packed linear layers and the packings checkpoints use. Knows no files."""

from qwenkit.quant.affine import AffineLinear, FusedLinear
from qwenkit.quant.pack_model import pack_model
from qwenkit.quant.packed import PackedBf16Linear, PackedLinear

__all__ = ["AffineLinear", "FusedLinear", "PackedBf16Linear", "PackedLinear", "pack_model"]
