"""GPTQ: rounding a weight input by input; what each rounding spoils is mended in the inputs still to come.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022
(arXiv 2210.17323), with the settings of the original (reference: finetune section 6). Different from there: a
group's scale is chosen for the values its columns have when their turn comes, is rounded to float16 before
anything is rounded with it, and may clip where that lowers the error; the most excited columns come first,
even where those of a group stay neighbours (whole groups then, and within each); columns that calibration
never excited are rounded to nearest, not set to zero. Knows tensors only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qwenkit.core import UnsupportedError
from qwenkit.kernels.rounding import LEAST_SCALE, MOST_LINES, Lines, group_grid, nearest_codes

_STRIP = 512  # rows or columns that large matrices are worked on at once
_PIECE = 1 << 20  # elements
_DAMPINGS = 4  # attempts, each ten times the one before


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded: 4 or 8 bits, inputs that share a scale (-1: all), and by which rules.

    symmetric: the zero is the middle code; act_order: inputs that calibration excites most come first (a
    group is then any set of inputs); damping: share of the mean of the Hessian's diagonal added to it
    (with the original's 0.01 the result predicts other text worse: docs/performance.md); clip: look
    for scales that clip the largest values.
    """

    bits: int = 4
    group: int = 128
    symmetric: bool = True
    act_order: bool = False
    damping: float = 0.5
    clip: bool = True

    def check(self, columns: int) -> None:
        """Raise UnsupportedError unless a weight with that many inputs can be rounded so."""
        if self.bits not in (4, 8):
            raise UnsupportedError(f"GPTQ to {self.bits} bits.", "Choose 4 or 8.")
        if self.group != -1 and (self.group < 1 or columns % self.group):
            raise UnsupportedError(
                f"Groups of {self.group} do not divide the {columns} inputs of a layer.",
                "Choose 32, 64 or 128 where it divides them, or -1 for one scale a row.",
            )


@dataclass(frozen=True)
class RoundedWeight:
    """codes uint8 [out, in]; scales float16, zeros uint8 [groups, out]; group_of_column int32 [in].

    w = scale * (code - zero). error: what the rounding changed of the layer's output over the calibration
    data, as a share of its square; damping: the one that was enough.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group_of_column: Tensor
    error: float
    damping: float

    def dequantize(self) -> Tensor:
        """The weight, float32 [out, in]."""
        group = self.group_of_column.long()
        zeros, scales = self.zeros.float().t()[:, group], self.scales.float().t()[:, group]
        return (self.codes.float() - zeros) * scales


def round_weight(
    weight: Tensor,
    hessian: Tensor,
    rounding: Rounding,
    *,
    groups: Tensor | None = None,
    grid: RoundedWeight | None = None,
) -> RoundedWeight:
    """weight: float [out, in]; hessian: float32 [in, in], the mean of x x^T over calibration inputs x.

    groups: which group each input is in, int [in], all of them of `rounding.group`, by default as `rounding`
    says; grid: an earlier rounding whose groups, scales and zeros are kept. Groups come in the order in which
    calibration excites them, and so do the inputs of each: the last ones have little left to mend with.

    Raises UnsupportedError for a group that does not divide, numbers that are not finite, a Hessian that no
    damping makes positive definite, and scales beyond float16.
    """
    rows, columns = weight.shape
    rounding.check(columns)
    _check_finite(weight, "The weight holds")
    _check_finite(hessian, "The second moments of the layer's inputs hold")
    group = columns if rounding.group == -1 else rounding.group
    if groups is None:
        groups = _groups(hessian.diagonal(), group, rounding) if grid is None else grid.group_of_column
    order = _order(hessian.diagonal(), groups.long())
    rest = weight.detach().float().t()[order].contiguous()  # [in, out]: a column of the weight is one line
    carry, damping = _carry(hessian, order, rounding.damping)
    share = carry.diagonal().square().reciprocal()  # what an error of a column costs
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    scales, zeros = torch.empty(columns // group, rows), torch.empty(columns // group, rows)
    if grid is not None:
        scales, zeros = grid.scales.float().clamp(min=LEAST_SCALE), grid.zeros.float()
    for first in range(0, columns, MOST_LINES):
        last = min(first + MOST_LINES, columns)
        errors = torch.empty(last - first, rows)
        lines = Lines(rest[first:last], carry[first:last, first:last].contiguous(), codes[first:last], errors)
        at = first
        while at < last:
            of = int(groups[order[at]])
            end = (at // group + 1) * group
            if at % group == 0 and grid is None:
                # Columns beyond these lines have not met their errors yet.
                ahead = rest[at:end].clone()
                if end > last and at > first:
                    ahead[last - at :].addmm_(carry[first:at, last:end].t(), errors[: at - first], alpha=-1)
                scales[of], zeros[of] = _grid(ahead, share[at:end], rounding)
            until = min(end, last)
            lines.round(at - first, until - first, scales[of], zeros[of], rounding.bits)
            at = until
        rest[last:].addmm_(carry[first:last, last:].t(), errors, alpha=-1)
    result = RoundedWeight(
        codes[torch.argsort(order)].t().contiguous(),
        scales.half(),
        zeros.to(torch.uint8),
        groups.int(),
        math.nan,
        damping,
    )
    return replace(result, error=output_error(weight, result.dequantize(), hessian))


def _groups(excited: Tensor, group: int, rounding: Rounding) -> Tensor:
    """Which group each column is in [in]: neighbours, or with act_order those excited alike."""
    position = torch.arange(len(excited))
    if rounding.act_order:
        position = torch.argsort(torch.argsort(excited, descending=True))
    return position // group


def _order(excited: Tensor, group_of_column: Tensor) -> Tensor:
    """The columns group by group, the most excited groups first, and in each the most excited columns."""
    of_group = torch.zeros(int(group_of_column.max()) + 1).index_add_(0, group_of_column, excited)
    columns = torch.argsort(excited, descending=True, stable=True)
    rank = torch.argsort(torch.argsort(of_group, descending=True, stable=True))
    return columns[torch.argsort(rank[group_of_column[columns]], stable=True)]


def round_to_grid(weight: Tensor, rounding: Rounding) -> RoundedWeight:
    """Each weight [out, in] to the nearest of its group's values: no calibration, the baseline of GPTQ.

    error: what the rounding changed of the weight, as a share of its square. Raises as `round_weight`.
    """
    rows, columns = weight.shape
    rounding.check(columns)
    _check_finite(weight, "The weight holds")
    group = columns if rounding.group == -1 else rounding.group
    lines = weight.detach().float().t().contiguous()
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    scales, zeros = torch.empty(columns // group, rows), torch.empty(columns // group, rows)
    even = torch.ones(group)
    for of, first in enumerate(range(0, columns, group)):
        part = lines[first : first + group]
        scales[of], zeros[of] = _grid(part, even, rounding)
        codes[first : first + group] = nearest_codes(part, scales[of], zeros[of], rounding.bits)
    result = RoundedWeight(
        codes.t().contiguous(),
        scales.half(),
        zeros.to(torch.uint8),
        (torch.arange(columns) // group).int(),
        math.nan,
        0.0,
    )
    size = float(lines.square().sum(dtype=torch.float64))
    lost = float((result.dequantize().t() - lines).square().sum(dtype=torch.float64))
    return replace(result, error=lost / size if size else 0.0)


def output_error(weight: Tensor, rounded: Tensor, hessian: Tensor) -> float:
    """Mean square of (weight - rounded) x over that of weight x, by the second moments of x [in, in]."""
    lost = size = 0.0
    for rows, ours in zip(torch.split(weight, _STRIP), torch.split(rounded, _STRIP), strict=True):
        exact = rows.float()
        size += _energy(exact, hessian)
        lost += _energy(exact - ours.float(), hessian)
    return lost / size if size else 0.0


def _energy(rows: Tensor, hessian: Tensor) -> float:
    return float((rows @ hessian).mul_(rows).sum(dtype=torch.float64))


def _carry(hessian: Tensor, order: Tensor, damping: float) -> tuple[Tensor, float]:
    """U, upper, with U^T U the inverse of the damped Hessian, its inputs in `order`; and the damping that
    made it positive definite.

    H read backwards has a lower factor L; L read backwards is upper, R, with H = R R^T: U is its inverse.
    All of it in the place of one copy of H: of a 72B's widest layer that is 2.4 GB.
    """
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    if mean == 0:
        return torch.eye(len(hessian)), damping
    backwards = order.flip(0)
    for _ in range(_DAMPINGS):
        factor = hessian[backwards]
        for row in torch.split(factor, _STRIP):
            row.copy_(row[:, backwards])
        damped = factor.diagonal()
        never = damped == 0  # never excited: alone, rounded to nearest
        damped.add_(damping * mean)
        damped[never] = mean
        lower = factor.mT  # symmetric as yet; stored by columns LAPACK needs no copy
        failed = torch.empty((), dtype=torch.int32)
        torch.linalg.cholesky_ex(lower, out=(lower, failed))
        if not failed:
            _reverse(factor.view(-1))
            upper = factor.mT
            _invert(upper)
            if _finite(upper):
                return upper, damping
        damping *= 10
    raise UnsupportedError(
        f"The second moments of the inputs are not positive definite, not even damped by {damping / 10:g}.",
        "Give more calibration text, or a larger damping.",
    )


def _reverse(line: Tensor) -> None:
    """Turn it round in its place."""
    count = len(line)
    for start in range(0, count // 2, _PIECE):
        end = min(start + _PIECE, count // 2)
        front = line[start:end].flip(0)
        line[start:end] = line[count - end : count - start].flip(0)
        line[count - end : count - start] = front


def _invert(upper: Tensor) -> None:
    """Invert an upper triangular matrix in its place, some columns at a time, by what is inverted already."""
    size = len(upper)
    for start in range(0, size, _STRIP):
        end = min(start + _STRIP, size)
        corner, above = upper[start:end, start:end], upper[:start, start:end]
        corner.copy_(torch.linalg.solve_triangular(corner, torch.eye(end - start), upper=True))
        above.copy_((upper[:start, :start] @ above) @ corner).neg_()


def _grid(columns: Tensor, share: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """Scale and zero, each [out], for columns [n, out]; share [n]: the cost of a squared error in each."""
    scales, zeros = group_grid(
        columns, share, rounding.bits, symmetric=rounding.symmetric, clip=rounding.clip
    )
    if not bool(torch.isfinite(scales).all()):
        raise UnsupportedError("A weight is too large for float16 scales.", "Keep the layer in 16 bits.")
    return scales, zeros


def _finite(tensor: Tensor) -> bool:
    """By sums, in which a NaN or an infinity stays; in strips, for a sum in doubles copies what it adds."""
    return all(math.isfinite(float(strip.sum(dtype=torch.float64))) for strip in torch.split(tensor, _STRIP))


def _check_finite(tensor: Tensor, what_holds: str) -> None:
    if not _finite(tensor):
        count = int(tensor.numel() - torch.isfinite(tensor).sum())
        raise UnsupportedError(
            f"{what_holds} {count} values that are not finite numbers.",
            "Check the checkpoint, and that calibration runs without overflow (try float32).",
        )
