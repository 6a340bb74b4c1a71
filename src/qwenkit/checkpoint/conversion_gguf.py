"""Which tensor of a checkpoint becomes which of a GGUF file, and in what form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from qwenkit.checkpoint.gguf_forms import (
    Packed,
    PlannedBlocks,
    bits_of,
    dequantized,
    fits,
    from_codes,
    from_floats,
    keeps_codes,
)
from qwenkit.checkpoint.gguf_header import plain_dtype
from qwenkit.checkpoint.layout import renamed, to_v1
from qwenkit.checkpoint.names import stored_modules
from qwenkit.checkpoint.safetensors_writer import PlannedTensor
from qwenkit.core import RequestError, UnsupportedError
from qwenkit.model import ModelConfig

Arch = Literal["qwen", "qwen2"]

FORMS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
"""What matrices can be written as. Of the Q4 ones, embedding and output are Q8_0."""

_PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_OUTER = ("token_embd.weight", "output.weight")


@dataclass
class GGUFTensors:
    """config: the shape as written; form: that of most tensors; losses: what it costs."""

    config: ModelConfig
    form: str
    tensors: list[PlannedBlocks] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)


def gguf_tensors(
    config: ModelConfig,
    tensors: Sequence[PlannedTensor],
    arch: Arch,
    form: str | None,
    rounded: list[str],
) -> GGUFTensors:
    """Canonical tensors as those of a GGUF file of `arch`; vectors are float32, as llama.cpp wants them.

    rounded: gets the names of float tensors that lose digits when they are read. Raises RequestError for
    an unknown form or arch, UnsupportedError for a shape that llama.cpp does not run.
    """
    if arch not in ("qwen", "qwen2"):
        raise RequestError(f"There is no --arch {arch!r}.", "Choose qwen or qwen2.")
    if form is not None and form.upper() not in FORMS:
        raise RequestError(f"There is no --type {form!r}.", f"Choose one of {', '.join(FORMS).lower()}.")
    _check_shape(config, arch)
    if arch == "qwen":
        config, tensors = to_v1(config, tensors)
    else:
        config = replace(config, architecture="qwen2")
    modules = stored_modules("gguf", config.num_layers, fused_qkv=arch == "qwen")
    tensors = renamed(config, tensors, modules)
    layers: dict[str, dict[str, PlannedTensor]] = {}
    floats: list[PlannedTensor] = []
    for tensor in tensors:
        module, _, kind = tensor.name.rpartition(".")
        if kind in ("weight", "bias"):
            floats.append(tensor)
        else:
            layers.setdefault(module, {})[kind] = tensor
    found = GGUFTensors(config, form.upper() if form else _best_form(floats, layers))
    own_form = _form_of_codes if form is None else lambda layer: found.form
    _add_layers(found, layers, own_form, rounded)
    _add_floats(found, floats, rounded)
    return found


def _best_form(floats: Sequence[PlannedTensor], layers: Mapping[str, Packed]) -> str:
    kinds: Counter[str] = Counter()
    for layer in layers.values():
        kinds[_form_of_codes(layer)] += math.prod(layer["qweight"].shape) // bits_of(layer)
    if not kinds:
        kinds.update(_PLAIN[tensor.dtype] for tensor in floats if len(tensor.shape) == 2)
    return kinds.most_common(1)[0][0]


def _form_of_codes(layer: Packed) -> str:
    return "Q4_0" if bits_of(layer) == 4 else "Q8_0"


def _add_layers(
    found: GGUFTensors,
    layers: Mapping[str, Packed],
    form_of: Callable[[Packed], str],
    rounded: list[str],
) -> None:
    recoded = 0
    for module, layer in layers.items():
        name, form = f"{module}.weight", form_of(layer)
        if keeps_codes(layer, form):
            found.tensors.append(from_codes(name, layer, form, rounded))
            recoded += 1
        else:
            whole = dequantized(name, layer)
            found.tensors.append(from_floats(whole, _own_form(form, whole), rounded))
    if recoded < len(layers) and found.form != "F32":
        found.losses.append(
            f"{len(layers) - recoded} of {len(layers)} GPTQ layers are dequantized and rounded to "
            f"{found.form}, which cannot say what their codes, zeros and groups say."
        )


def _add_floats(found: GGUFTensors, floats: Sequence[PlannedTensor], rounded: list[str]) -> None:
    odd, kinds = [], set()
    for tensor in floats:
        form = "F32" if len(tensor.shape) == 1 else _own_form(found.form, tensor)
        if form != found.form and len(tensor.shape) == 2 and tensor.name not in _OUTER:
            odd.append(tensor.name)
        plain = plain_dtype(form)
        if plain is None or torch.promote_types(plain, tensor.dtype) != plain:
            kinds.add(f"{tensor.form} to {form}")
        found.tensors.append(from_floats(tensor, form, rounded))
    if kinds:
        found.losses.append(f"Weights are rounded: {', '.join(sorted(kinds))}.")
    if odd:
        found.losses.append(
            f"{len(odd)} matrices stay F16, as their rows do not divide into blocks of {found.form} "
            f"({odd[0]} and others alike)."
        )


def _own_form(form: str, tensor: PlannedTensor) -> str:
    """The form of one matrix: the wanted one, where it suits."""
    if form.startswith("Q4") and tensor.name in _OUTER:
        form = "Q8_0"
    return form if fits(form, tensor.shape[1]) else "F16"


def _check_shape(config: ModelConfig, arch: Arch) -> None:
    if config.rotary_dim != config.head_dim:
        raise UnsupportedError(
            f"Only {config.rotary_dim} of {config.head_dim} channels of a head are rotated.",
            "llama.cpp rotates all in these architectures; keep the v1 layout.",
        )
    if arch == "qwen" and config.num_heads * config.head_dim != config.hidden_size:
        raise UnsupportedError(
            f"{config.num_heads} heads of {config.head_dim} channels in a width of {config.hidden_size}.",
            "llama.cpp's architecture qwen wants them equal; give --arch qwen2.",
        )
