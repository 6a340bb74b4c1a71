"""A weight that was rounded before and changed a little since, rounded again in the groups it had.

On the grid it had, only the change is rounded; on a new grid (gptq_rounding) everything once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from qwenkit.quant.gptq_rounding import RoundedWeight, Rounding, output_error, round_to_grid, round_weight

_BLOCK = 128  # columns whose errors are carried on together


def round_again(
    weight: Tensor, hessian: Tensor | None, rounding: Rounding, before: RoundedWeight, changed: Tensor
) -> RoundedWeight:
    """Round the rows `changed`, bool [out], of a weight [out, in]; the others keep their codes.

    With a hessian [in, in] by GPTQ, each row on the grid, its own or a new one, that changes its output less.
    Without one to nearest on a new grid: on its own that would mostly give the row back. Raises as
    `round_weight`.
    """
    order = _grouped(before.group_of_column, hessian if rounding.act_order else None)
    place = torch.argsort(order)
    plain = replace(rounding, act_order=False)
    lines = weight.detach().float()[:, order]

    def placed(rounded: RoundedWeight) -> RoundedWeight:
        return replace(
            rounded, codes=rounded.codes[:, place].contiguous(), group_of_column=before.group_of_column
        )

    if hessian is None:
        found = _with_rows(placed(round_to_grid(lines, plain)), before, ~changed)
        size, lost = (
            float(part.double().square().sum()) for part in (weight, found.dequantize() - weight.float())
        )
        return replace(found, error=lost / size if size else 0.0)
    moments = hessian[order][:, order]
    found = placed(round_weight(lines, moments, plain))
    same = placed(_on_grid(lines, moments, replace(before, damping=found.damping), order, rounding.bits))
    cost = [_costs(weight.float() - one.dequantize(), hessian) for one in (same, found)]
    found = _with_rows(found, same, cost[0] <= cost[1])  # never where the cost is no number
    found = _with_rows(found, before, ~changed)
    return replace(found, error=output_error(weight, found.dequantize(), hessian))


def _grouped(group_of_column: Tensor, hessian: Tensor | None) -> Tensor:
    """An order in which the inputs of each group follow each other, the most excited ones of it first."""
    first = torch.arange(len(group_of_column))
    if hessian is not None:
        first = torch.argsort(hessian.diagonal(), descending=True)
    return first[torch.argsort(group_of_column[first], stable=True)]


def _on_grid(weight: Tensor, hessian: Tensor, grid: RoundedWeight, order: Tensor, bits: int) -> RoundedWeight:
    """GPTQ of a weight [out, in], its inputs in `order`, with scales and zeros that are given."""
    damped = hessian.clone()
    mean, diagonal = float(hessian.diagonal().mean()), damped.diagonal()
    diagonal[diagonal == 0] = mean
    diagonal += grid.damping * mean
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(damped)[0])
    carry = torch.linalg.cholesky_ex(inverse, upper=True)[0]  # U^T U is the inverse
    group = grid.group_of_column.long()[order]
    rest, codes = weight.t().clone(), torch.empty(weight.shape[1], len(weight), dtype=torch.uint8)
    columns, top, step = len(rest), (1 << bits) - 1, _step(grid)
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        errors = torch.empty(last - first, len(weight))
        for at in range(first, last):
            scale, zero = step(int(group[at]))
            code = (rest[at] / scale).round_().add_(zero).clamp_(0, top)
            codes[at] = code.to(torch.uint8)
            errors[at - first] = (rest[at] - (code - zero) * scale) / carry[at, at]
            rest[at + 1 : last].addr_(carry[at, at + 1 : last], errors[at - first], alpha=-1)
        rest[last:].addmm_(carry[first:last, last:].t(), errors, alpha=-1)
    return replace(grid, codes=codes.t())


def _step(grid: RoundedWeight) -> Callable[[int], tuple[Tensor, Tensor]]:
    scales, zeros = grid.scales.float().clamp(min=2.0**-24), grid.zeros.float()
    return lambda group: (scales[group], zeros[group])


def _with_rows(weight: RoundedWeight, other: RoundedWeight, rows: Tensor) -> RoundedWeight:
    """With the outputs `rows`, bool [out], of another weight of the same groups."""
    return replace(
        weight,
        codes=torch.where(rows[:, None], other.codes, weight.codes),
        scales=torch.where(rows, other.scales, weight.scales),
        zeros=torch.where(rows, other.zeros, weight.zeros),
    )


def _costs(lost: Tensor, hessian: Tensor) -> Tensor:
    """Of each output the mean square of lost x, by the second moments of x: [out]."""
    return (lost @ hessian).mul_(lost).sum(1)
