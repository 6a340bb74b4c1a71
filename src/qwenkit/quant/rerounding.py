"""A weight that was rounded before and changed a little since, rounded again in the groups it had.

On the grid it had, only the change is rounded; on a new grid (gptq_rounding) everything once more.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qwenkit.quant.gptq_rounding import RoundedWeight, Rounding, output_error, round_to_grid, round_weight


def round_again(
    weight: Tensor, hessian: Tensor | None, rounding: Rounding, before: RoundedWeight, changed: Tensor
) -> RoundedWeight:
    """Round the rows `changed`, bool [out], of a weight [out, in]; the others keep their codes.

    With a hessian [in, in] by GPTQ, each row on the grid, its own or a new one, that changes its output less.
    Without one to nearest on a new grid: on its own that would mostly give the row back. Raises as
    `round_weight`.
    """
    if hessian is None:
        order = torch.argsort(before.group_of_column, stable=True)
        found = round_to_grid(weight[:, order], rounding)
        codes = found.codes[:, torch.argsort(order)].contiguous()
        found = replace(found, codes=codes, group_of_column=before.group_of_column)
        found = _with_rows(found, before, ~changed)
        size, lost = (
            float(part.double().square().sum()) for part in (weight, found.dequantize() - weight.float())
        )
        return replace(found, error=lost / size if size else 0.0)
    same = round_weight(weight, hessian, rounding, grid=before)
    found = round_weight(weight, hessian, rounding, groups=before.group_of_column)
    cost = [_costs(weight.float() - one.dequantize(), hessian) for one in (same, found)]
    found = _with_rows(found, same, cost[0] <= cost[1])  # never where the cost is no number
    found = _with_rows(found, before, ~changed)
    return replace(found, error=output_error(weight, found.dequantize(), hessian))


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
