"""The linear layers of a block in the order of the original, each rounded for the inputs that reach it.

c_attn, attn.c_proj, w1 and w2, mlp.c_proj (reference: model section 10): every layer sees what the rounded
ones before it produce.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from qwenkit.core import UnsupportedError
from qwenkit.model import ModelConfig
from qwenkit.quant.gptq_rounding import RoundedWeight, Rounding, round_to_grid, round_weight
from qwenkit.quantize.block_pass import BlockPass
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
    through: BlockPass, rounding: Mapping[str, Rounding], stored: Mapping[str, StoredLayer] | None = None
) -> dict[str, RoundedWeight]:
    """Round the block's linear layers by GPTQ and move the hidden states through it.

    rounding: how, for each of LAYERS; stored: the words they have already, if they are rounded again. The
    block's weights become the values that the codes stand for. Raises UnsupportedError naming the layer whose
    inputs or weight are not finite, or cannot be rounded.
    """
    block = through.block
    number = block.attn.layer
    done: dict[str, RoundedWeight] = {}
    stored = stored or {}

    def round_all(names: tuple[str, ...], inputs: Iterable[Tensor]) -> None:
        if all(name in stored and stored[name].kept for name in names):
            for _ in inputs:  # the stage still moves the texts
                pass
            done.update({name: stored[name].words for name in names})
            return
        columns = linear_of(block, names[0]).in_features
        moments = _moments(inputs, columns, f"transformer.h.{number}.{names[0]}")
        for name in names:
            layer = linear_of(block, name)
            try:
                if name in stored:
                    done[name] = stored[name].rounded(layer.weight, moments, rounding[name])
                else:
                    done[name] = round_weight(layer.weight, moments, rounding[name])
            except UnsupportedError as error:
                raise UnsupportedError(
                    f"transformer.h.{number}.{name}: {error.problem}", error.remedy
                ) from error
            put(layer, done[name].dequantize())

    round_all(("attn.c_attn",), through.normed())
    round_all(("attn.c_proj",), through.attended())
    round_all(("mlp.w1", "mlp.w2"), through.middle())
    round_all(("mlp.c_proj",), through.gated())
    through.finish()
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


def _moments(inputs: Iterable[Tensor], columns: int, name: str) -> Tensor:
    moments = SecondMoments(columns)
    for x in inputs:
        check_finite(x, name, "inputs")
        moments.add(x)
    return moments.mean()
