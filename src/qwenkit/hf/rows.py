"""From transformers' attention_mask and position_ids to the Batch of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qwenkit.core import RequestError, UnsupportedError
from qwenkit.model import Batch, ModelConfig, ntk_alpha


@dataclass(frozen=True, eq=False)
class DispatchedBatch(Batch):
    """A Batch whose mask follows the queries, for models whose layers live on several devices."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.mask is not None and self.mask.device != q.device:
            return replace(self, mask=self.mask.to(q.device)).attend(layer, q, k, v)
        return super().attend(layer, q, k, v)


def prompt_alpha(config: ModelConfig, rows: int, length: int, mask: Tensor | None) -> tuple[float, ...]:
    """NTK factor of each row of a prompt of `length` slots; unmasked tokens count (mask [rows, length])."""
    if not config.dynamic_ntk or length <= config.seq_length:
        return (1.0,)
    counts = [length] * rows if mask is None else mask.ne(0).sum(-1).tolist()
    return tuple(ntk_alpha(count, config.seq_length) for count in counts)


def layout(
    rows: int, new: int, past: int, mask: Tensor | None, position_ids: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """(positions int64 [rows, new], mask bool [rows, 1, new, past + new] or None) of the new tokens.

    A masked slot counts for nothing wherever it is, left, right or between; position_ids, if given,
    replace the count. Raises RequestError for shapes that do not fit and for several texts packed in a row.
    """
    width = past + new
    slots = torch.arange(past, width, device=device)
    keep = _keep(mask, rows, width, device)
    if position_ids is not None:
        positions = _given_positions(position_ids, rows, new, packed_matters=keep is None and past == 0)
    elif keep is None:
        positions = slots.expand(rows, new)
    else:
        positions = (keep.cumsum(-1) - 1).clamp_min(0)[:, past:]
    if keep is None and (past == 0 or new == 1):
        return positions, None  # the causal rule alone decides
    seen = (slots[:, None] >= torch.arange(width, device=device))[None]  # [1, new, K]
    if keep is not None:
        seen = seen & keep[:, None, :]
    return positions, seen[:, None]


def _keep(mask: Tensor | None, rows: int, width: int, device: torch.device) -> Tensor | None:
    if mask is None:
        return None
    if mask.dim() != 2:
        raise UnsupportedError(
            f"attention_mask has shape {tuple(mask.shape)}.",
            f"Give one value a token, 1 to keep and 0 for padding: [{rows}, {width}].",
        )
    if tuple(mask.shape) != (rows, width):
        raise RequestError(
            f"attention_mask has shape {tuple(mask.shape)}; {rows} rows of {width} tokens are attended to.",
            "It covers the cached tokens and the new ones.",
        )
    keep = mask.to(device).ne(0)
    return None if bool(keep.all()) else keep


def _given_positions(position_ids: Tensor, rows: int, new: int, *, packed_matters: bool) -> Tensor:
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, rows) or position_ids.shape[1] != new:
        raise RequestError(
            f"position_ids has shape {tuple(position_ids.shape)} for {rows} rows of {new} new tokens.",
            f"Give [{rows}, {new}], or leave it out.",
        )
    if packed_matters and new > 1 and bool((position_ids[:, 1:] <= position_ids[:, :-1]).any()):
        raise RequestError(
            "position_ids starts anew inside a row, as if several texts were packed in one.",
            "Give each text its own row; texts in one row would see each other.",
        )
    return position_ids.expand(rows, new)
