"""Another number of tokens: embedding and output matrices cut, or grown by rows that start from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from qwenkit.checkpoint.safetensors_writer import PlannedTensor
from qwenkit.core import CheckpointError, UnsupportedError
from qwenkit.model import CausalLM

MULTIPLE = 128
"""Rows are padded to a multiple of this, as published checkpoints are; it keeps matrix kernels aligned."""


def resize_vocabulary(
    model: CausalLM, rows: int, init: Mapping[int, Sequence[int]] | None = None
) -> CausalLM:
    """Make room for token ids below `rows` and start new tokens as the mean of the tokens they replace.

    model: changed in place and returned, its configuration included. rows: one more than the largest id.
    Nothing grows while spare rows of the padded matrix suffice; it never shrinks. Else both matrices grow
    to the next multiple of 128. init: new id -> ids of the pieces that its text was until now; the rows of
    embedding and output become the mean over the pieces, computed in float32. Rows added without pieces
    get the mean of all old rows, so that they are neither likely nor strange. Tied matrices stay tied.

    Raises CheckpointError for ids out of range, UnsupportedError for a quantized embedding or output.
    """
    init = init or {}
    wte, head = model.transformer.wte, model.lm_head
    if not isinstance(wte, nn.Embedding) or not isinstance(head, nn.Linear):
        raise UnsupportedError("The embedding or the output is quantized.", "Resize the 16-bit checkpoint.")
    old_rows = wte.weight.shape[0]
    for token, pieces in init.items():
        if not 0 <= token < rows:
            raise CheckpointError(
                f"New token id {token} is outside 0...{rows - 1}.", "Raise `rows` above it."
            )
        wrong = [piece for piece in pieces if not 0 <= piece < old_rows]
        if wrong or not pieces:
            raise CheckpointError(
                f"New token {token} is made of {wrong or 'no pieces'}.", f"Give ids from 0 to {old_rows - 1}."
            )
    new_rows = max(old_rows, -(-rows // MULTIPLE) * MULTIPLE) if rows > old_rows else old_rows
    tied = head.weight is wte.weight
    trainable = wte.weight.requires_grad
    # Both results are computed before either is assigned: a failure leaves the model as it was.
    grown = [_grow(wte.weight, new_rows, init)]
    if not tied:
        grown.append(_grow(head.weight, new_rows, init))
    parameters = [nn.Parameter(tensor, requires_grad=trainable) for tensor in grown]
    wte.weight, head.weight = parameters[0], parameters[-1]
    wte.num_embeddings = head.out_features = new_rows
    model.shape = model.transformer.shape = replace(model.shape, vocab_size=new_rows)
    return model


def with_rows(tensors: Sequence[PlannedTensor], rows: int) -> list[PlannedTensor]:
    """Canonical tensors with embedding and output of exactly `rows` rows, resized when they are read.

    Rows are cut from the end; new ones get the mean of all old rows. Raises UnsupportedError for a
    quantized embedding or output.
    """
    result = []
    for tensor in tensors:
        module, _, kind = tensor.name.rpartition(".")
        if module in ("transformer.wte", "lm_head"):
            if kind != "weight":
                raise UnsupportedError(f"{module} is quantized.", "Resize the 16-bit checkpoint.")
            read = partial(_with_rows, tensor, rows)
            tensor = replace(tensor, shape=(rows, *tensor.shape[1:]), read=read)
        result.append(tensor)
    return result


def _with_rows(tensor: PlannedTensor, rows: int) -> Tensor:
    held = tensor.read()
    return held[:rows] if rows <= held.shape[0] else _grow(held, rows, {})


@torch.no_grad()
def _grow(old: Tensor, rows: int, init: Mapping[int, Sequence[int]]) -> Tensor:
    """A copy of `old` [v, h] with `rows` rows; never the old memory, which may be a mapped file."""
    grown = old.new_empty(rows, old.shape[1])
    grown[: old.shape[0]] = old
    if rows > old.shape[0]:
        grown[old.shape[0] :] = old.mean(0, dtype=torch.float32).to(old.dtype)
    for token, pieces in init.items():
        grown[token] = old[list(pieces)].float().mean(0).to(old.dtype)
    return grown
