"""The compiled CPU kernels, typed: tensors in, tensors out, and a word on which path runs.

Knows: packed affine and bf16 weights, rms_norm, apply_rotary, silu_gate, threads, instruction sets, the
machine's limits. Does not know models, files, or autograd: results carry no gradient.

The extension is optional. Where it was not built, or QWENKIT_ISA=reference forbids it, `ready()` is False,
`explain()` gives the reason, and calling an operator raises UnsupportedError: nothing is slow in silence.

Environment: QWENKIT_ISA = reference | avx2 | avx512 | amx forces a path (an error where the machine lacks
it); QWENKIT_THREADS = number of threads, else one for each CPU this process may use.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from qwenkit.core import UnsupportedError

Activations = Literal["int8", "16bit"]

NESTED_GROUP = 256  # columns

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # dtype.h
ZEROS = {"none": 0, "points": 1, "minima": 2}  # affine.h


@cache
def _extension() -> ModuleType | None:
    if importlib.util.find_spec("qwenkit.kernels._cpu") is None:
        return None
    return importlib.import_module("qwenkit.kernels._cpu")


def extension() -> Any:
    """The compiled module; UnsupportedError where the package was installed without it."""
    module = _extension()
    if module is None:
        raise UnsupportedError(
            "The native CPU kernels are not part of this installation.",
            "Install a C++20 compiler (GCC 11, Clang 12 or newer) and Python's headers, then reinstall.",
        )
    return module


def built() -> bool:
    """Whether the compiled kernels are installed."""
    return _extension() is not None


def isa() -> str:
    """The instruction set in use: amx, avx512, avx2, or reference (no native kernel)."""
    if not built():
        return "reference"
    try:
        return str(extension().isa())
    except ValueError as error:
        raise UnsupportedError(str(error), "Unset QWENKIT_ISA to take the best this machine has.") from error


def set_isa(name: str | None) -> None:
    """Force an instruction set; None takes the best. UnsupportedError where the machine lacks it."""
    try:
        extension().set_isa(name or "")
    except ValueError as error:
        raise UnsupportedError(
            str(error), "Choose one that `qwenkit.kernels.native.explain()` lists."
        ) from error


def available_isas() -> list[str]:
    """Instruction sets this installation and machine can run, the slowest first."""
    if not built():
        return ["reference"]
    return [name for name in ("reference", "avx2", "avx512", "amx") if not extension().missing_for(name)]


def ready() -> bool:
    """Whether native operators run here and now."""
    return built() and isa() != "reference"


def threads() -> int:
    """Threads of the kernels' pool, the caller's included."""
    return int(extension().threads())


def set_threads(count: int) -> None:
    """Set the pool's size (also QWENKIT_THREADS)."""
    try:
        extension().set_threads(count)
    except ValueError as error:
        raise UnsupportedError(str(error)) from error


def set_affinity(cpus: Sequence[int]) -> None:
    """Bind worker i of the pool to cpus[i % len(cpus)]; an empty list removes the binding."""
    try:
        extension().set_affinity(list(cpus))
    except ValueError as error:
        raise UnsupportedError(str(error)) from error


def explain() -> str:
    """What will run, and why, in a few lines for `doctor` and `--explain`."""
    if not built():
        return "kernels: torch reference (SLOW): the native CPU kernels were not built at installation"
    name, machine = isa(), available_isas()
    if name == "reference":
        return f"kernels: torch reference (SLOW), forced; this machine offers {', '.join(machine)}"
    lines = [f"kernels: native, {name}, {threads()} threads (this machine offers {', '.join(machine)})"]
    for rows in (1, 32, 512):
        lines.append(
            f"  {rows:>3} rows: affine {extension().affine_path(rows, False, 1)}"
            f" (16-bit mode {extension().affine_path(rows, True, 1)}), bf16 {extension().bf16_path(rows)}"
        )
    for missing in ("amx", "avx512", "avx2"):
        if missing not in machine:
            lines.append(f"  no {missing}: this machine lacks {extension().missing_for(missing)}")
    return "\n".join(lines)


def read_bandwidth(megabytes: int = 512) -> float:
    """Bytes a second the pool's threads read from memory, measured now."""
    return float(extension().read_bandwidth(megabytes))


def peak(kind: str) -> float:
    """Operations a second of int8_amx, bf16_amx, int8_vnni or fma on all threads, measured now."""
    try:
        return float(extension().peak(kind))
    except ValueError as error:
        raise UnsupportedError(str(error)) from error


def _require(tensor: Tensor, what: str, *, dtype: torch.dtype | None = None) -> Tensor:
    if tensor.device.type != "cpu":
        raise UnsupportedError(f"{what} is on {tensor.device}; the native kernels run on the CPU.")
    if dtype is not None and tensor.dtype != dtype:
        raise UnsupportedError(f"{what} has dtype {tensor.dtype}, not {dtype}.")
    if dtype is None and tensor.dtype not in TYPES:
        raise UnsupportedError(
            f"{what} has dtype {tensor.dtype}; float32, bfloat16 and float16 are supported."
        )
    return tensor.contiguous()


def huge(nbytes: int) -> Tensor:
    """An uninitialised uint8 buffer on huge pages where the system grants them: read a third faster.

    Packed weights that come from elsewhere (a file, a copy) are worth copying into one.
    """
    return torch.from_numpy(extension().allocate(nbytes))


@dataclass(frozen=True)
class AffineShape:
    """How an affine weight is laid out: all that its packed bytes do not say themselves."""

    rows: int
    columns: int
    bits: int
    group: int  # columns that share a scale in the packed form: 32, 64 or 128; nested 256
    groups: int  # packed groups a row
    zeros: Literal["none", "points", "minima"]
    inner: int = 0  # nested: columns that share an integer scale, 16 or 32

    @property
    def nbytes(self) -> int:
        try:
            return int(
                extension().affine_packed_bytes(
                    self.rows,
                    self.columns,
                    self.group,
                    self.groups,
                    self.bits,
                    ZEROS[self.zeros],
                    self.inner,
                )
            )
        except ValueError as error:
            raise UnsupportedError(str(error)) from error


def arrange_groups(group_of_column: Tensor) -> tuple[int, Tensor, Tensor | None]:
    """How columns fill packed groups: (packed group size, source group of each packed group, gather).

    group_of_column: int [in], in any order (act-order checkpoints). Columns are sorted by group; a group is
    cut into packed groups of 128, 64 or 32 columns, the largest not above the smallest group (or 32) and the
    last one padded. gather: int32 [packed columns], the source column or -1, or None where columns keep
    their places.
    """
    columns = group_of_column.numel()
    order = torch.argsort(group_of_column, stable=True)
    counts = torch.bincount(group_of_column.long())
    smallest = int(counts[:-1].min()) if counts.numel() > 1 else columns
    size = next((s for s in (128, 64) if smallest >= s and smallest % s == 0), 32)
    if counts.numel() == 1:
        size = 128
    pieces = (counts + size - 1) // size
    group_map = torch.repeat_interleave(torch.arange(counts.numel()), pieces)
    starts = (torch.cumsum(pieces, 0) - pieces) * size
    firsts = torch.cumsum(counts, 0) - counts
    sorted_groups = group_of_column.long()[order]
    places = starts[sorted_groups] + torch.arange(columns) - firsts[sorted_groups]
    gather = torch.full((group_map.numel() * size,), -1, dtype=torch.int32)
    gather[places] = order.int()
    in_place = bool((gather[:columns] == torch.arange(columns)).all()) and gather.numel() - columns < size
    return size, group_map.int(), None if in_place else gather


def _check_codes(codes: Tensor, bits: int) -> None:
    if int(codes.max()) >= 1 << bits:
        raise UnsupportedError(
            f"A code of {int(codes.max())} does not fit {bits} bits.", f"Codes go up to {(1 << bits) - 1}."
        )


def exact_half(values: Tensor, what: str) -> Tensor:
    """`values` as float16, refusing any that would change: packing must not alter a weight."""
    half = values.to(torch.float16)
    if not torch.equal(half.float(), values.float()):
        raise UnsupportedError(
            f"{what} hold values that float16 cannot represent.", "Store them as float16 before packing."
        )
    return half.contiguous()


class AffineWeight:
    """A packed affine weight and its product. Holds references to its tensors; addresses stay valid."""

    def __init__(
        self, shape: AffineShape, packed: Tensor, gather: Tensor | None, bias: Tensor | None
    ) -> None:
        if packed.numel() != shape.nbytes:
            raise UnsupportedError(f"A packed weight of {packed.numel()} bytes does not fit {shape}.")
        if gather is not None and gather.numel() != shape.group * shape.groups:
            raise UnsupportedError(f"A gather of {gather.numel()} columns does not fit {shape}.")
        if bias is not None and bias.numel() != shape.rows:
            raise UnsupportedError(f"A bias of {bias.numel()} values does not fit {shape}.")
        self.shape = shape
        self.packed = _require(packed, "The packed weight", dtype=torch.uint8)
        self.gather = None if gather is None else _require(gather, "The gather", dtype=torch.int32)
        self.bias = None if bias is None else _require(bias.float(), "The bias", dtype=torch.float32)
        self.native = extension().AffineWeight(
            shape.rows,
            shape.columns,
            shape.group,
            shape.groups,
            shape.bits,
            ZEROS[shape.zeros],
            shape.inner,
            self.packed.data_ptr(),
            0 if self.gather is None else self.gather.data_ptr(),
            0 if self.bias is None else self.bias.data_ptr(),
        )

    @classmethod
    def pack(
        cls,
        codes: Tensor,
        scales: Tensor,
        *,
        bits: int,
        group_of_column: Tensor,
        zeros: Tensor | None = None,
        minima: Tensor | None = None,
        eighths: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> AffineWeight:
        """Lay a weight out for the kernels; no value changes.

        codes: uint8 [out, in], one code a byte; scales: [groups, out], exact in float16;
        w = scale * (code - zero) with zeros uint8 [groups, out], or zero 8 / 128 where none is given.
        Of 4 bits also w = scale * (code - eighth / 8) with eighths uint8 [groups, out] up to 128,
        and w = scale * code + minimum with minima [groups, out] exact in float16.
        group_of_column: int [in]; bias: [out] or None.
        """
        out, columns = codes.shape
        if sum(plane is not None for plane in (zeros, minima, eighths)) > 1:
            raise UnsupportedError("A weight has one of zero points, eighths and minima.")
        if eighths is not None and (bits != 4 or int(eighths.max()) > 128):
            raise UnsupportedError("Zeros in eighths of a step go with 4-bit codes and are 0 to 128.")
        if group_of_column.shape != (columns,):
            raise UnsupportedError(
                f"group_of_column has shape {tuple(group_of_column.shape)}, not ({columns},)."
            )
        size, group_map, gather = arrange_groups(group_of_column)
        source = int(group_map.max()) + 1
        for name, plane in (("scales", scales), ("zeros", zeros), ("minima", minima), ("eighths", eighths)):
            if plane is not None and (plane.shape[1] != out or plane.shape[0] < source):
                raise UnsupportedError(f"{name} have shape {tuple(plane.shape)}, not ({source}, {out}).")
        _check_codes(codes, bits)
        middle = 1 << (bits - 1)
        if zeros is not None and bool((zeros == middle).all()):
            zeros = None
        stored = eighths if zeros is None else zeros * 8 if bits == 4 else zeros
        kind: Literal["none", "points", "minima"] = (
            "minima" if minima is not None else "none" if stored is None else "points"
        )
        shape = AffineShape(out, columns, bits, size, group_map.numel(), kind)
        weight = cls(shape, huge(shape.nbytes), gather, bias)
        codes = _require(codes, "The codes", dtype=torch.uint8)
        half = exact_half(_require(scales, "The scales"), "Scales")
        points = None if stored is None else _require(stored, "The zeros", dtype=torch.uint8)
        low = None if minima is None else exact_half(_require(minima, "The minima"), "Minima")
        weight.native.pack(
            codes.data_ptr(),
            half.data_ptr(),
            0 if points is None else points.data_ptr(),
            0 if low is None else low.data_ptr(),
            group_map.data_ptr(),
            0,
            0,
        )
        return weight

    @classmethod
    def pack_nested(
        cls,
        codes: Tensor,
        scales: Tensor,
        inner_scales: Tensor,
        *,
        bits: int,
        minima: Tensor | None = None,
        inner_minima: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> AffineWeight:
        """Lay out a weight whose groups of 256 columns hold integer scales of their own; no value changes.

        codes: uint8 [out, in] of 4 or 6 bits; scales: float16 [groups, out]; inner_scales: int8 [groups, 8 or
        16, out]; w = scale * inner_scale * (code - 8 or 32), or with minima float16 [groups, out] and
        inner_minima uint8 below 64, shaped as inner_scales: w = scale * inner_scale * code + minimum *
        inner_minimum. The last group may be short, its inner scales may not. bias: [out] or None.
        """
        out, columns = codes.shape
        groups = -(-columns // NESTED_GROUP)
        inners = inner_scales.shape[1]
        if (minima is None) != (inner_minima is None):
            raise UnsupportedError("Nested minima come with integer factors, and these with minima.")
        for name, plane, dtype, form in (
            ("codes", codes, torch.uint8, (out, columns)),
            ("scales", scales, torch.float16, (groups, out)),
            ("inner_scales", inner_scales, torch.int8, (groups, inners, out)),
            ("minima", minima, torch.float16, (groups, out)),
            ("inner_minima", inner_minima, torch.uint8, (groups, inners, out)),
        ):
            if plane is not None and tuple(_require(plane, name, dtype=dtype).shape) != form:
                raise UnsupportedError(f"{name} have shape {tuple(plane.shape)}, not {form}.")
        _check_codes(codes, bits)
        if inner_minima is not None and int(inner_minima.max()) > 63:
            raise UnsupportedError(f"An inner minimum of {int(inner_minima.max())} is above 63.")
        kind: Literal["none", "minima"] = "none" if minima is None else "minima"
        shape = AffineShape(out, columns, bits, NESTED_GROUP, groups, kind, NESTED_GROUP // inners)
        weight = cls(shape, huge(shape.nbytes), None, bias)
        group_map = torch.arange(groups, dtype=torch.int32)
        planes = [None if p is None else p.contiguous() for p in (minima, inner_scales, inner_minima)]
        codes, scales = codes.contiguous(), scales.contiguous()
        low, steps, factors = (0 if p is None else p.data_ptr() for p in planes)
        weight.native.pack(codes.data_ptr(), scales.data_ptr(), 0, low, group_map.data_ptr(), steps, factors)
        return weight

    def multiply(
        self, x: Tensor, activations: Activations = "int8", out_dtype: torch.dtype | None = None
    ) -> Tensor:
        """x @ w^T + bias. x: [..., in] float32, bfloat16 or float16; returns [..., out] in out_dtype or x's.

        activations "int8": x is quantized for the product, a scale per row and two packed groups, one if they
        are nested (max / 127, round to nearest); a row with a NaN or infinity gives NaN. "16bit": x as it is
        (bfloat16 and float16 through bf16 tiles with AMX; float32 and other instruction sets in float32),
        sums in float32; UnsupportedError for nested weights.
        """
        shape = self.shape
        if x.shape[-1] != shape.columns:
            raise UnsupportedError(f"x has {x.shape[-1]} columns, the weight {shape.columns}.")
        if shape.inner and activations != "int8":
            raise UnsupportedError("Nested codes are multiplied by inputs rounded to 8 bits only.")
        x = _require(x, "x")
        dtype = out_dtype or x.dtype
        y = torch.empty(*x.shape[:-1], shape.rows, dtype=dtype)
        count = x.numel() // shape.columns
        if count:
            self.native.multiply(
                x.data_ptr(), TYPES[x.dtype], y.data_ptr(), TYPES[dtype], count, activations == "16bit"
            )
        return y

    def path(self, rows: int, activations: Activations = "int8", dtype: torch.dtype = torch.bfloat16) -> str:
        """The kernel a product of that many rows of x uses."""
        return str(extension().affine_path(rows, activations == "16bit", TYPES[dtype]))


class Bf16Weight:
    """A packed bfloat16 weight and its product."""

    def __init__(self, rows: int, columns: int, packed: Tensor, bias: Tensor | None) -> None:
        if packed.numel() != extension().bf16_packed_bytes(rows, columns):
            raise UnsupportedError(
                f"A packed weight of {packed.numel()} bytes does not fit [{rows}, {columns}]."
            )
        if bias is not None and bias.numel() != rows:
            raise UnsupportedError(f"A bias of {bias.numel()} values does not fit {rows} rows.")
        self.rows, self.columns = rows, columns
        self.packed = _require(packed, "The packed weight", dtype=torch.uint8)
        self.bias = None if bias is None else _require(bias.float(), "The bias", dtype=torch.float32)
        self.native = extension().Bf16Weight(
            rows, columns, self.packed.data_ptr(), 0 if self.bias is None else self.bias.data_ptr()
        )

    @classmethod
    def pack(cls, weight: Tensor, bias: Tensor | None = None) -> Bf16Weight:
        """weight: bfloat16 [out, in]; bias: [out] or None."""
        rows, columns = weight.shape
        packed = cls(rows, columns, huge(extension().bf16_packed_bytes(rows, columns)), bias)
        weight = _require(weight, "The weight", dtype=torch.bfloat16)
        packed.native.pack(weight.data_ptr())
        return packed

    def multiply(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """x @ w^T + bias, x rounded to bfloat16, sums in float32. x: [..., in]; returns [..., out]."""
        if x.shape[-1] != self.columns:
            raise UnsupportedError(f"x has {x.shape[-1]} columns, the weight {self.columns}.")
        x = _require(x, "x")
        dtype = out_dtype or x.dtype
        y = torch.empty(*x.shape[:-1], self.rows, dtype=dtype)
        count = x.numel() // self.columns
        if count:
            self.native.multiply(x.data_ptr(), TYPES[x.dtype], y.data_ptr(), TYPES[dtype], count)
        return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As reference.rms_norm. x: [..., h]; weight: [h] of x's dtype."""
    return _norm(x, None, weight, eps)[1]


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + residual, rms_norm of that) in one pass over memory; all of one dtype."""
    return _norm(x, residual, weight, eps)


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = _require(x, "x")
    h = x.shape[-1]
    weight = _require(weight, "The norm's weight", dtype=x.dtype)
    if weight.shape != (h,):
        raise UnsupportedError(f"The norm's weight has shape {tuple(weight.shape)}, not ({h},).")
    total = x
    if residual is not None:
        residual = _require(residual, "The residual", dtype=x.dtype)
        if residual.shape != x.shape:
            raise UnsupportedError(f"The residual has shape {tuple(residual.shape)}, x {tuple(x.shape)}.")
        total = torch.empty_like(x)
    y = torch.empty_like(x)
    extension().norm(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        weight.data_ptr(),
        total.data_ptr(),
        y.data_ptr(),
        x.numel() // max(h, 1),
        h,
        eps,
        TYPES[x.dtype],
    )
    return total, y


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As reference.apply_rotary. x: [b, s, heads, d], heads contiguous; cos, sin: [b or 1, s, r] float32."""
    b, s, heads, d = x.shape
    r = cos.shape[-1]
    if cos.shape != sin.shape or cos.shape[1] != s or cos.shape[0] not in (1, b) or r > d or r % 2:
        raise UnsupportedError(f"Angles of shape {tuple(cos.shape)} do not fit x {tuple(x.shape)}.")
    # A slice of fused q, k, v keeps its heads together: only the step between tokens differs, no copy.
    token = x.stride(1)
    if x.stride(3) != 1 or x.stride(2) != d or (b > 1 and x.stride(0) != s * token):
        x = x.contiguous()
        token = heads * d
    if x.device.type != "cpu" or x.dtype not in TYPES:
        _require(x, "x")
    cos, sin = _require(cos, "cos", dtype=torch.float32), _require(sin, "sin", dtype=torch.float32)
    y = torch.empty(b, s, heads, d, dtype=x.dtype)
    extension().rope(
        x.data_ptr(),
        y.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        b * s,
        token,
        heads * d,
        heads,
        d,
        r,
        cos.shape[0] * s,
        TYPES[x.dtype],
    )
    return y


def silu_gate(up: Tensor, gate: Tensor) -> Tensor:
    """As reference.silu_gate: up * silu(gate), [..., n]; halves of a fused projection stay in place."""
    if up.shape != gate.shape or up.dtype != gate.dtype:
        raise UnsupportedError(f"up is {tuple(up.shape)} {up.dtype}, gate {tuple(gate.shape)} {gate.dtype}.")
    columns = up.shape[-1]
    rows = up.numel() // max(columns, 1)
    up, up_row = _rows_in_place(up, columns, "up")
    gate, gate_row = _rows_in_place(gate, columns, "gate")
    y = torch.empty(up.shape, dtype=up.dtype)
    extension().gate(
        up.data_ptr(),
        gate.data_ptr(),
        y.data_ptr(),
        rows,
        columns,
        up_row,
        gate_row,
        columns,
        TYPES[up.dtype],
    )
    return y


def _rows_in_place(x: Tensor, columns: int, what: str) -> tuple[Tensor, int]:
    """x and its row step: x itself where its rows are evenly spaced, else a contiguous copy."""
    if x.device.type == "cpu" and x.dtype in TYPES:
        if x.is_contiguous():
            return x, columns
        strides = x.stride()
        if strides[-1] == 1 and all(
            strides[i] == strides[i + 1] * x.shape[i + 1] for i in range(x.dim() - 2)
        ):
            return x, strides[-2]
    return _require(x, what), columns
