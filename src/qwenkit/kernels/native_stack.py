"""The blocks of a decoder as one call into the compiled kernels: nothing but arithmetic between its layers.

A step of a small model takes 15 ms and has 24 blocks; called one operator at a time from Python, a third of
that is spent between the operators. Knows kernel objects, addresses and shapes; which layers of which model
they are is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.kernels import native
from qwenkit.kernels.native import AffineWeight, Bf16Weight
from qwenkit.kernels.native_paged import NativePagedLayer
from qwenkit.kernels.paged import RaggedRows


@dataclass(frozen=True)
class NativeProduct:
    """y = x w^T + bias. exact: x in 16 bits (AffineWeight.multiply); bfloat16 weights ignore it."""

    weight: AffineWeight | Bf16Weight
    exact: bool = False


@dataclass(frozen=True)
class NativeBlock:
    """One block: norm, qkv, attention, `attended`, add and norm, up and gate, `down`, add.

    ln_1, ln_2: weights [hidden] of the norms, of the stack's dtype. window: as PagedLayer.attend.
    """

    ln_1: Tensor
    qkv: NativeProduct
    layer: NativePagedLayer
    attended: NativeProduct
    ln_2: Tensor
    up: NativeProduct
    gate: NativeProduct
    down: NativeProduct
    window: int | None = None


class NativeStack:
    """Blocks in order; a result has the bits that the same kernels give when called one by one.

    hidden, inner: widths of the residual stream and of the FFN. Raises UnsupportedError for parts that do not
    fit together.
    """

    def __init__(
        self, blocks: list[NativeBlock], *, hidden: int, inner: int, eps: float, dtype: torch.dtype
    ) -> None:
        self._blocks = blocks  # keeps the memory behind the addresses
        self._hidden, self._dtype = hidden, dtype
        self._native: Any = native.extension().Stack(hidden, inner, eps, native.TYPES[dtype])
        for block in blocks:
            for norm in (block.ln_1, block.ln_2):
                if norm.shape != (hidden,) or norm.dtype != dtype or not norm.is_contiguous():
                    raise UnsupportedError(f"A norm's weight is {tuple(norm.shape)} {norm.dtype}.")
            products = (block.qkv, block.attended, block.up, block.gate, block.down)
            try:
                self._native.add(
                    block.ln_1.data_ptr(),
                    block.ln_2.data_ptr(),
                    *(native.extension().Product(p.weight.native, p.exact) for p in products),
                    block.layer.native,
                    block.window or 0,
                )
            except ValueError as error:
                raise UnsupportedError(str(error)) from error

    def run(self, x: Tensor, angles: tuple[Tensor, Tensor], logn: Tensor | None, rows: RaggedRows) -> Tensor:
        """x: [tokens, hidden] -> the same after all blocks; the rest as PagedLayer.attend."""
        cos, sin = angles
        tokens = cos.shape[0]
        if x.shape != (tokens, self._hidden) or x.dtype != self._dtype or sin.shape != cos.shape:
            raise UnsupportedError(f"x is {tuple(x.shape)} {x.dtype} for {tokens} tokens.")
        x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
        logn = None if logn is None else logn.contiguous()
        y = torch.empty_like(x)
        try:
            self._native.run(
                x.data_ptr(),
                y.data_ptr(),
                tokens,
                cos.data_ptr(),
                sin.data_ptr(),
                cos.shape[1],
                0 if logn is None else logn.data_ptr(),
                *rows.addresses,
            )
        except ValueError as error:
            raise UnsupportedError(str(error)) from error
        return y
