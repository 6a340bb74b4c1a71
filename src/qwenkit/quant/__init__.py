"""Number formats: packed linear layers and the packings checkpoints use. Knows no files."""

from qwenkit.quant.affine import AffineLinear, FusedLinear
from qwenkit.quant.codes import AffineCodes
from qwenkit.quant.nested import Codes, NestedCodes
from qwenkit.quant.pack_model import Packer, pack_model
from qwenkit.quant.packed import PackedBf16Linear, PackedLinear
from qwenkit.quant.packing import Packing
from qwenkit.quant.rtn import round_to_nearest

__all__ = [
    "AffineCodes",
    "AffineLinear",
    "Codes",
    "FusedLinear",
    "NestedCodes",
    "PackedBf16Linear",
    "PackedLinear",
    "Packer",
    "Packing",
    "pack_model",
    "round_to_nearest",
]
