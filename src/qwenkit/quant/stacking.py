"""Several weights as the rows of one: q, k and v of a file that stores them apart."""

from __future__ import annotations

from collections.abc import Sequence

from qwenkit.quant.codes import AffineCodes
from qwenkit.quant.gguf_blocks import nearest_codes
from qwenkit.quant.nested import Codes, NestedCodes


def stack_codes(parts: Sequence[Codes]) -> Codes:
    """The rows of all parts, in order. Parts of different forms are rounded to 8 bits in groups of 32."""
    nested = [part for part in parts if isinstance(part, NestedCodes)]
    if len(nested) == len(parts) and all(nested[0].stacks_with(part) for part in nested):
        return NestedCodes.stack(nested)
    affine = [part for part in parts if isinstance(part, AffineCodes)]
    if len(affine) < len(parts) or not all(affine[0].stacks_with(part) for part in affine):
        affine = [_eight_bits(part) for part in parts]
    return AffineCodes.stack(affine)


def _eight_bits(part: Codes) -> AffineCodes:
    if isinstance(part, AffineCodes) and part.bits == 8:
        return part
    return nearest_codes(part.dequantize())
