"""Choosing tokens with the compiled kernels: all rows of a batch in one call, as reference_sampling would.

Knows rows of logits on the CPU; see native.py for which kernels run where.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwenkit.core.errors import UnsupportedError
from qwenkit.kernels import native
from qwenkit.kernels.reference_sampling import COLDEST, UNIT, Allowed, Chosen, Draw, Likely, in_units

# The structs of sampling.h.
DRAW = np.dtype(
    [
        ("row", "i8"), ("top_k", "i8"), ("top_p", "u8"), ("uniform", "u8"), ("temperature", "f4"),
        ("least", "f4"), ("first_edit", "i8"), ("last_edit", "i8"), ("allowed", "u8"), ("token", "i8"),
        ("not_finite", "i8"),
    ]
)  # fmt: skip
LIKELY = np.dtype(
    [("row", "i8"), ("token", "i8"), ("top", "i8"), ("first", "i8"), ("found", "i8"), ("value", "f8")]
)


@cache
def _extension() -> Any:
    """The compiled module, if its structs are these. An editable install can hold one built before a change:
    it would choose wrong tokens in silence. Raises UnsupportedError."""
    module = native.extension()
    built = getattr(module, "draw_row_bytes", 0), getattr(module, "likely_row_bytes", 0)
    if built != (DRAW.itemsize, LIKELY.itemsize):
        raise UnsupportedError(
            f"The compiled kernels are of another version: structs of {built} bytes, "
            f"not {(DRAW.itemsize, LIKELY.itemsize)}.",
            "Install qwenkit again: pip install -e .",
        )
    return module


def choose(
    logits: Tensor, draws: Sequence[Draw], *, size: int | None = None, holes: Tensor | None = None
) -> Chosen:
    """As reference_sampling.choose, with the same tokens. Rows of logits may be strided, columns not."""
    source = _Source(logits, size, holes)
    ids, values, ends = [], [], [0]
    for d in draws:
        source.check(d.row, "A draw's row", len(logits))
        if d.allowed is not None:
            source.check_bits(d.allowed)
        if d.edits is not None:
            ids.append(d.edits[0])
            values.append(d.edits[1])
        ends.append(ends[-1] + (0 if d.edits is None else len(d.edits[0])))
    edit_ids = np.concatenate(ids).astype(np.int32, copy=False) if ids else np.empty(0, np.int32)
    edit_values = np.concatenate(values).astype(np.float32, copy=False) if ids else np.empty(0, np.float32)
    if len(edit_ids) != len(edit_values):
        raise UnsupportedError(f"{len(edit_ids)} ids are edited with {len(edit_values)} values.")
    if len(edit_ids):
        source.check(int(edit_ids.min()), "An edited id", source.size)
        source.check(int(edit_ids.max()), "An edited id", source.size)
    rows = np.array([_struct(*each) for each in zip(draws, ends, ends[1:], strict=False)], DRAW)
    _extension().draw(
        *source.arguments, edit_ids.ctypes.data, edit_values.ctypes.data, rows.ctypes.data, len(rows)
    )
    counts = zip(rows["row"].tolist(), rows["not_finite"].tolist(), strict=True)
    return Chosen(rows["token"].tolist(), {row: count for row, count in counts if count})


def _struct(d: Draw, first_edit: int, last_edit: int) -> tuple[int | float, ...]:
    """A draw as the kernels read it."""
    top_p, uniform = min(in_units(d.top_p), UNIT), min(in_units(d.uniform), UNIT - 1)
    temperature = max(d.temperature, COLDEST) if d.temperature else 0
    least = math.log(d.min_p) if d.min_p > 0 else -math.inf
    allowed = 0 if d.allowed is None else d.allowed.ctypes.data
    return d.row, d.top_k, top_p, uniform, temperature, least, first_edit, last_edit, allowed, 0, 0


def log_probabilities(
    logits: Tensor,
    wanted: Sequence[tuple[int, int, int]],
    *,
    size: int | None = None,
    holes: Tensor | None = None,
) -> list[Likely]:
    """As reference_sampling.log_probabilities, to float32's precision."""
    source = _Source(logits, size, holes)
    rows = np.zeros(len(wanted), LIKELY)
    first = 0
    for i, (row, token, top) in enumerate(wanted):
        source.check(row, "A row", len(logits))
        source.check(token, "A token", source.size)
        top = min(max(top, 0), source.size)
        rows[i] = (row, token, top, first, 0, 0.0)
        first += top
    ids, values = np.empty(first, np.int32), np.empty(first, np.float64)
    _extension().likely(*source.arguments, rows.ctypes.data, ids.ctypes.data, values.ctypes.data, len(rows))
    results: list[Likely] = []
    for found in rows:
        at = slice(int(found["first"]), int(found["first"]) + int(found["found"]))
        results.append((float(found["value"]), list(zip(ids[at].tolist(), values[at].tolist(), strict=True))))
    return results


class _Source:
    """Checked logits [b, rows] as the kernels take them; keeps what they point to alive."""

    def __init__(self, logits: Tensor, size: int | None, holes: Tensor | None) -> None:
        if logits.dim() != 2 or logits.device.type != "cpu" or logits.dtype not in native.TYPES:
            raise UnsupportedError(
                f"Logits are {tuple(logits.shape)} {logits.dtype} on {logits.device}; "
                "[b, rows] in float32, bfloat16 or float16 on the CPU are supported."
            )
        self.logits = logits if logits.stride(1) == 1 else logits.contiguous()
        self.size = logits.shape[1] if size is None else size
        if not 1 <= self.size <= logits.shape[1]:
            raise UnsupportedError(f"{self.size} tokens do not fit {logits.shape[1]} columns of logits.")
        self.holes: NDArray[np.int32] | None = None
        if holes is not None:
            self.holes = holes.to(device="cpu", dtype=torch.int32).contiguous().numpy()
            for hole in (self.holes.min(), self.holes.max()) if len(self.holes) else ():
                self.check(int(hole), "A hole", self.size)

    @property
    def arguments(self) -> tuple[int, int, int, int, int, int]:
        """Address, row step, size, holes' address and number, type."""
        holes = 0 if self.holes is None else self.holes.ctypes.data
        count = -1 if self.holes is None else len(self.holes)
        return (
            self.logits.data_ptr(),
            self.logits.stride(0),
            self.size,
            holes,
            count,
            native.TYPES[self.logits.dtype],
        )

    def check_bits(self, allowed: Allowed) -> None:
        words = -(-self.size // 32)
        if allowed.dtype != np.uint32 or allowed.shape != (words,) or not allowed.flags.c_contiguous:
            raise UnsupportedError(
                f"Allowed ids are {allowed.shape} {allowed.dtype}; {words} uint32 in a row are needed."
            )

    def check(self, index: int, what: str, end: int) -> None:
        if not 0 <= index < end:
            raise UnsupportedError(f"{what} is {index}, not from 0 to {end - 1}.")
