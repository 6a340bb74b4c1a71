"""The linear layers of a block in the order of the original, each rounded for the inputs that reach it.

c_attn, attn.c_proj, w1 and w2, mlp.c_proj (reference: model section 10): every layer sees what the rounded
ones before it produce.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from qwenkit.core import UnsupportedError
from qwenkit.model import Block, ModelConfig
from qwenkit.quant.gptq_rounding import RoundedWeight, Rounding, round_to_grid, round_weight
from qwenkit.quantize.block_pass import BlockPass
from qwenkit.quantize.drift import Correction, Drift
from qwenkit.quantize.moments import SecondMoments

if TYPE_CHECKING:
    from qwenkit.quantize.requantized import StoredLayer

LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")


def shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each linear layer of a block."""
    hidden, inner = config.hidden_size, config.num_heads * config.head_dim
    return {
        "attn.c_attn": (config.qkv_size, hidden),
        "attn.c_proj": (hidden, inner),
        "mlp.w1": (config.ffn_size, hidden),
        "mlp.w2": (config.ffn_size, hidden),
        "mlp.c_proj": (hidden, config.ffn_size),
    }


def round_block(
    through: BlockPass,
    rounding: Mapping[str, Rounding],
    stored: Mapping[str, StoredLayer] | None = None,
    *,
    original: BlockPass | None = None,
    correction: float = 0.0,
) -> dict[str, RoundedWeight]:
    """Round the block's linear layers by GPTQ and move the hidden states through it.

    rounding: how, for each of LAYERS; stored: the words they have already, if they are rounded again;
    original: the same texts in a copy of the block as it was, after blocks as they were; correction: the
    share of their drift since then that a weight makes up for before it is rounded (see `drift`). The
    block's weights become the values that the codes stand for. Raises UnsupportedError naming the layer whose
    inputs or weight are not finite, or cannot be rounded.
    """
    block = through.block
    number = block.attn.layer
    done: dict[str, RoundedWeight] = {}
    stored = stored or {}

    def round_all(names: tuple[str, ...], inputs: Iterator[Tensor], before: Iterator[Tensor] | None) -> None:
        if all(name in stored and stored[name].kept for name in names):
            for _ in inputs:  # the stage still moves the texts
                pass
            done.update({name: stored[name].words for name in names})
            return
        columns = linear_of(block, names[0]).in_features
        moments, correct = _moments(inputs, before, columns, f"transformer.h.{number}.{names[0]}", correction)
        weights: dict[str, Tensor] = {name: linear_of(block, name).weight for name in names}
        if correct is not None:
            for name in names:
                with _naming(number, name):
                    weights[name] = correct.applied(weights[name])
            del correct  # twice as large as the moments, and rounding needs room
        for name in names:
            with _naming(number, name):
                if name in stored:
                    done[name] = stored[name].rounded(weights.pop(name), moments, rounding[name])
                else:
                    done[name] = round_weight(weights.pop(name), moments, rounding[name])
            put(linear_of(block, name), done[name].dequantize())

    round_all(("attn.c_attn",), through.normed(), None if original is None else original.normed())
    round_all(("attn.c_proj",), through.attended(), None if original is None else original.attended())
    round_all(("mlp.w1", "mlp.w2"), through.middle(), None if original is None else original.middle())
    round_all(("mlp.c_proj",), through.gated(), None if original is None else original.gated())
    through.finish()
    if original is not None:
        original.finish()
    return done


def round_block_to_nearest(
    block: nn.Module, rounding: Mapping[str, Rounding], stored: Mapping[str, StoredLayer] | None = None
) -> dict[str, RoundedWeight]:
    """Each weight by itself, with no calibration: the baseline. Raises UnsupportedError as `round_block`."""
    done = {}
    for name in LAYERS:
        weight, how = linear_of(block, name).weight, rounding[name]
        done[name] = stored[name].rounded(weight, None, how) if stored else round_to_grid(weight, how)
    return done


def linear_of(block: nn.Module, name: str) -> nn.Linear:
    """One of LAYERS of a block."""
    return cast(nn.Linear, block.get_submodule(name))


def put(layer: nn.Linear, weight: Tensor) -> None:
    """Give a linear layer the values that its codes stand for, float32 [out, in]."""
    layer.weight = nn.Parameter(weight, requires_grad=False)


def check_finite(x: Tensor, name: str, what: str) -> None:
    """Raise UnsupportedError naming the layer whose inputs or outputs are not finite numbers."""
    if not bool(torch.isfinite(x).all()):
        raise UnsupportedError(
            f"{name} has {what} that are not finite numbers on these texts.",
            "Check the checkpoint with `qwenkit generate`, or compute in float32 (--dtype float32).",
        )


@contextmanager
def _naming(number: int, name: str) -> Iterator[None]:
    """An UnsupportedError inside says which layer it is about."""
    try:
        yield
    except UnsupportedError as error:
        raise UnsupportedError(f"transformer.h.{number}.{name}: {error.problem}", error.remedy) from error


def as_it_was(block: Block) -> Block:
    """A copy that keeps the weights of now, and shares them until `put` replaces them."""
    return copy.deepcopy(block, {id(parameter): parameter for parameter in block.parameters()})


def _moments(
    inputs: Iterable[Tensor], before: Iterator[Tensor] | None, columns: int, name: str, correction: float
) -> tuple[Tensor, Correction | None]:
    """H of the inputs, and what corrects a weight for their drift from those `before`."""
    moments, drift = SecondMoments(columns), None if before is None else Drift(columns)
    for x in inputs:
        check_finite(x, name, "inputs")
        moments.add(x)
        if before is not None and drift is not None:
            drift.add(next(before), x)
    if before is None or drift is None:
        return moments.mean(), None
    for _ in before:  # its stage ends after the last text, too
        pass
    mean = moments.mean()
    return mean, Correction(mean, drift.mean(), correction)
