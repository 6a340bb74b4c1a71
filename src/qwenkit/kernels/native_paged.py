"""PagedLayer on the compiled CPU kernels: one call a layer and step rotates, keeps and attends.

Knows: which shapes the kernels take, and what must hold before addresses are handed over. The layout of a
block is in cpu/attention.h. Results carry no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native
from qwenkit.kernels.key_form import KeyForm
from qwenkit.kernels.paged import PagedLayer, PagedShape, RaggedRows, formed

FORMATS = {"float": 0, "int8": 1, "int8-affine": 2, "int4": 3}  # KvFormat in cpu/attention.h
UNIT = 32  # tokens stored together
MOST_CHANNELS = 1024


def why_not(shape: PagedShape) -> str | None:
    """Why the compiled kernels do not take a shape, or None if they do."""
    if not native.ready():
        return "the native kernels are not built or switched off"
    if shape.dtype not in native.TYPES:
        return f"the native kernels do not compute in {shape.dtype}"
    if shape.format not in FORMATS:
        return f"the native kernels do not keep {shape.format}"
    if shape.block_size % UNIT or shape.head_dim > MOST_CHANNELS:
        return f"the native kernels take blocks of {UNIT} tokens and heads of up to {MOST_CHANNELS} channels"
    return None


class NativePagedLayer(PagedLayer):
    """Keys and values in one mapping, zero at first; the system gives it memory as blocks are written.

    Quantized as quantize_kv does, bit for bit, and int4 as nibbles.py says. A query's output has the same
    bits however its text was cut into steps, whatever is computed beside it and on any number of threads.
    """

    def __init__(
        self, shape: PagedShape, keys: KeyForm | None = None, beside: NativePagedLayer | None = None
    ) -> None:
        if (reason := why_not(shape)) is not None:
            raise UnsupportedError(f"{reason[0].upper()}{reason[1:]}.", "Use paged_layer.")
        if min(shape.blocks, shape.block_size, shape.kv_heads, shape.head_dim) < 1 or (
            shape.heads < 1 or shape.heads % shape.kv_heads
        ):
            raise UnsupportedError(f"{shape} is no shape of a cache.")
        self.shape = shape
        form = formed(shape, keys)
        self._form = None if form is None else form.padded()
        self._angles: Tensor | None = None
        self._keeps_angles = False
        if shape.format == "int4":
            self._keeps_angles = beside is None
            if beside is None:
                self._angles = native.huge(shape.blocks * shape.block_size * (shape.head_dim // 2) * 4)
            else:
                self._angles = beside._angles
        layout = native.extension().PagedLayout(
            shape.blocks,
            shape.block_size,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            native.TYPES[shape.dtype],
            FORMATS[shape.format],
            0 if self._form is None else self._form.data_ptr(),
            0 if self._angles is None else self._angles.data_ptr(),
            self._keeps_angles,
        )
        self.memory = native.huge(layout.bytes)
        """uint8, as cpu/attention.h lays it out."""
        self.native: Any = native.extension().PagedLayer(layout, self.memory.data_ptr())
        self._qkv_shape = (shape.heads + 2 * shape.kv_heads, shape.head_dim)

    @property
    def nbytes(self) -> int:
        angles = self._angles.nbytes if self._angles is not None and self._keeps_angles else 0
        return self.memory.nbytes + angles

    @property
    def kernel(self) -> str:
        tiles = self.shape.dtype == torch.bfloat16 and native.isa() == "amx"
        return f"native {'amx' if tiles else native.isa().replace('amx', 'avx512')}"

    def attend(
        self,
        qkv: Tensor,
        angles: tuple[Tensor, Tensor],
        logn: Tensor | None,
        rows: RaggedRows,
        window: int | None = None,
    ) -> Tensor:
        cos, sin = angles
        tokens, rotary = cos.shape
        if (
            qkv.shape != (tokens, *self._qkv_shape)
            or qkv.dtype != self.shape.dtype
            or sin.shape != cos.shape
            or rotary > self.shape.head_dim
            or rotary % 2
            or (logn is not None and logn.shape != (tokens,))
            or (window is not None and window < 1)
        ):
            raise UnsupportedError(
                f"qkv {tuple(qkv.shape)} {qkv.dtype}, angles {tuple(cos.shape)} and {tuple(sin.shape)}, LogN "
                f"{None if logn is None else tuple(logn.shape)} or window {window} do not fit {self.shape}."
            )
        qkv, cos, sin = _plain(qkv, self.shape.dtype), _plain(cos), _plain(sin)
        logn = None if logn is None else _plain(logn)
        out = torch.empty(tokens, self.shape.heads, self.shape.head_dim, dtype=qkv.dtype)
        try:
            self.native.attend(
                qkv.data_ptr(),
                tokens,
                cos.data_ptr(),
                sin.data_ptr(),
                rotary,
                0 if logn is None else logn.data_ptr(),
                *rows.addresses,
                window or 0,
                out.data_ptr(),
            )
        except ValueError as error:
            raise UnsupportedError(str(error)) from error
        return out

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        try:
            self.native.copy([source for source, _ in pairs], [target for _, target in pairs])
        except ValueError as error:
            raise UnsupportedError(str(error)) from error


def _plain(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    if x.dtype != dtype or x.device.type != "cpu":
        raise UnsupportedError(
            f"A tensor of {x.dtype} on {x.device} was given, {dtype} on the CPU is needed."
        )
    return x.contiguous()
