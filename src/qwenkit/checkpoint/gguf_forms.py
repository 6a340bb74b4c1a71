"""Weights as the bytes a GGUF file stores (block layouts: ggml's), made a few rows at a time.

Floats are rounded by the gguf library. GPTQ codes are taken over as they are where a block can say the
same: int4 with the middle as zero is Q4_0, any int4 is Q8_0, int8 with the middle as zero is Q8_0.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwenkit.checkpoint.gguf_header import BLOCKS, plain_dtype
from qwenkit.checkpoint.layout import cast
from qwenkit.checkpoint.safetensors_writer import PlannedTensor
from qwenkit.quant import AffineLinear
from qwenkit.quant.gptq import codes_from_words, unpack_nibbles, unpack_zeros

Bytes = NDArray[np.uint8]

_CHUNK = 2**20  # weights; small enough that the library's temporaries stay in the processor's cache
_BLOCK = 32  # weights of a block in every form written here
_WIDTHS = {name: (weights, width) for name, weights, width in BLOCKS.values()}

Packed = Mapping[str, PlannedTensor]
"""The GPTQ tensors of one layer by kind: qweight, qzeros, scales, g_idx."""


@dataclass(frozen=True)
class PlannedBlocks:
    """A tensor of a GGUF file to be written: shape in torch order; form: ggml's name of its type.

    read and release: as of a PlannedTensor; what is read are its bytes, row after row.
    """

    name: str
    shape: tuple[int, ...]
    form: str
    read: Callable[[], Bytes]
    release: Callable[[], None] = lambda: None

    @property
    def nbytes(self) -> int:
        weights, width = _WIDTHS[self.form]
        return math.prod(self.shape) // weights * width


def fits(form: str, columns: int) -> bool:
    """Whether rows of that many weights divide into blocks of `form`."""
    return columns % _WIDTHS[form][0] == 0


def from_floats(tensor: PlannedTensor, form: str, rounded: list[str] | None = None) -> PlannedBlocks:
    """`tensor` in `form`; reading raises UnsupportedError for values that a float form cannot hold.

    rounded: gets the name of a tensor that lost digits in a float form.
    """
    dtype = plain_dtype(form)
    if dtype is None:
        return PlannedBlocks(tensor.name, tensor.shape, form, partial(_blocks, tensor, form), tensor.release)
    (plain,) = cast([tensor], dtype, rounded)
    return PlannedBlocks(tensor.name, tensor.shape, form, partial(_plain, plain), tensor.release)


def keeps_codes(layer: Packed, form: str) -> bool:
    """Whether `form` can say exactly what the codes say (but for scales that float16 cannot hold).

    The inputs of a block must share a scale, and the zero must be the one the form has.
    """
    order, bits, groups = layer["g_idx"].read(), bits_of(layer), layer["scales"].shape[0]
    if groups == 1:
        ordered = not bool(order.any())
    else:
        size = len(order) // groups
        ordered = size % _BLOCK == 0 and torch.equal(
            order, torch.arange(len(order), dtype=torch.int32) // size
        )
    if not ordered or not fits(form, len(order)) or plain_dtype(form) is not None:
        return False
    if form == "Q8_0" and bits == 4:
        return True
    if (form, bits) not in (("Q4_0", 4), ("Q8_0", 8)):
        return False
    zeros = unpack_zeros(layer["qzeros"].read(), bits)
    return bool((zeros == 2 ** (bits - 1)).all())


def bits_of(layer: Packed) -> int:
    """Bits of a code."""
    return layer["qweight"].shape[0] * 32 // layer["g_idx"].shape[0]


def from_codes(name: str, layer: Packed, form: str, rounded: list[str] | None = None) -> PlannedBlocks:
    """A layer in `form`, its codes taken over; only where `keeps_codes`. rounded: as in `from_floats`."""
    (scales,) = cast([layer["scales"]], torch.float16, rounded)
    layer = {**layer, "scales": scales}
    return PlannedBlocks(name, _shape(layer), form, partial(_recoded, layer, form), partial(_release, layer))


def dequantized(name: str, layer: Packed) -> PlannedTensor:
    """The weight that a GPTQ layer stands for, as float32 [out, in]."""
    return PlannedTensor(
        name, _shape(layer), torch.float32, partial(_dequantized, layer), partial(_release, layer)
    )


def _release(layer: Packed) -> None:
    for tensor in layer.values():
        tensor.release()


def _shape(layer: Packed) -> tuple[int, int]:
    return layer["qweight"].shape[1], layer["g_idx"].shape[0]


def _plain(tensor: PlannedTensor) -> Bytes:
    bytes_: Bytes = tensor.read().detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return bytes_


def _blocks(tensor: PlannedTensor, form: str) -> Bytes:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[form]
    rows = tensor.read().detach()
    step = max(1, _CHUNK // rows.shape[1])
    weights, width = _WIDTHS[form]
    out = np.empty((rows.shape[0], rows.shape[1] // weights * width), dtype=np.uint8)

    def fill(start: int) -> None:
        out[start : start + step] = quantize(rows[start : start + step].float().numpy(), kind)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for _ in threads.map(fill, range(0, rows.shape[0], step)):
            pass
    return out


def _dequantized(layer: Packed) -> Tensor:
    parts = {kind: tensor.read() for kind, tensor in layer.items()}
    return AffineLinear.from_gptq(
        parts["qweight"].contiguous(), parts["qzeros"], parts["scales"], parts["g_idx"], bits_of(layer)
    ).dequantize(torch.float32)


def _recoded(layer: Packed, form: str) -> Bytes:
    """Blocks of a float16 scale and 32 codes: signed bytes in Q8_0; in Q4_0 two halves a byte, 16 apart."""
    scales, bits = layer["scales"].read().t(), bits_of(layer)  # [out, groups]
    stored = codes_from_words(layer["qweight"].read().contiguous(), bits)
    zeros = unpack_zeros(layer["qzeros"].read(), bits).t()  # [out, groups]
    rows, columns = _shape(layer)
    groups = scales.shape[1]
    width = _WIDTHS[form][1]
    out = np.empty((rows, columns // _BLOCK, width), dtype=np.uint8)
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        plain = unpack_nibbles(stored[part]) if bits == 4 else stored[part]
        codes = plain.view(len(plain), groups, -1)
        if form == "Q8_0":
            codes = (codes.to(torch.int16) - zeros[part].to(torch.int16)[..., None]).to(torch.int8)
            body = codes.view(torch.uint8).reshape(len(codes), -1, _BLOCK)
        else:
            halves = codes.reshape(len(codes), -1, 2, _BLOCK // 2)
            body = halves[:, :, 0] | (halves[:, :, 1] << 4)
        steps = scales[part].repeat_interleave(columns // groups // _BLOCK, dim=1)
        out[part, :, :2] = steps.contiguous().view(torch.uint8).numpy().reshape(len(codes), -1, 2)
        out[part, :, 2:] = body.numpy()
    return out
