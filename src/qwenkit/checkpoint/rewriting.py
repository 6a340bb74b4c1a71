"""The stored tensors of a checkpoint under their canonical names, ready to be written again one by one.

GPTQ layers stay packed: their parts are cut and joined as words, and no code changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from qwenkit.checkpoint.empty_model import empty_model
from qwenkit.checkpoint.gguf_header import plain_dtype
from qwenkit.checkpoint.gptq_config import GPTQConfig
from qwenkit.checkpoint.loading import Loader
from qwenkit.checkpoint.safetensors_file import DTYPES
from qwenkit.checkpoint.safetensors_writer import PlannedTensor
from qwenkit.core import UnsupportedError
from qwenkit.quant.gptq import pack_zeros, unpack_zeros


def planned_tensors(loader: Loader, dtype: torch.dtype | None = None) -> list[PlannedTensor]:
    """Every tensor of the checkpoint under its canonical name; `loader.check` comes first.

    dtype None keeps what is stored: GPTQ words, and floats in their own dtype (GGUF blocks as float32). A
    tied output projection is left out. Raises UnsupportedError for packed weights in a `dtype`, or packed
    parts that cannot be one tensor; CheckpointError for a bias, or a tied output, that must not be dropped.
    """
    model = empty_model(loader.config)
    planned: list[PlannedTensor] = []
    for name, module in loader.owners(model):
        if loader.is_tied(name):
            _check_tied(loader)
            continue
        parts = loader.modules[name]
        packed = loader.is_packed(parts)
        if packed and dtype is not None:
            raise UnsupportedError(
                f"{name} is quantized; it cannot be rewritten as {str(dtype).removeprefix('torch.')}.",
                "Start from the 16-bit checkpoint.",
            )
        kinds = {kind: tuple(value.shape) for kind, value in module.named_parameters(recurse=False)}
        if packed:
            del kinds["weight"]
            if "bias" not in kinds:
                loader.check_extra_bias(parts)
            planned += _packed(loader, name, parts)
        for kind, shape in kinds.items():
            stored = [f"{part}.{kind}" for part in parts]
            kept = dtype or _own_dtype(loader, stored)
            read = partial(loader.read_rows, stored, kept, "cpu")
            planned.append(
                PlannedTensor(f"{name}.{kind}", shape, kept, read, partial(_release, loader, stored))
            )
    return planned


def _own_dtype(loader: Loader, stored: Sequence[str]) -> torch.dtype:
    """The one in which every part keeps its values."""
    dtypes = []
    for name in stored:
        words = loader.source.entry(name).dtype
        dtypes.append(DTYPES.get(words) or plain_dtype(words) or torch.float32)
    kept = dtypes[0]
    for dtype in dtypes[1:]:
        kept = torch.promote_types(kept, dtype)
    return kept


def _release(loader: Loader, stored: Sequence[str]) -> None:
    for name in stored:
        loader.source.release(name)


def _check_tied(loader: Loader) -> None:
    name = f"{loader.modules['lm_head'][0]}.weight"
    if name in loader.source.entries():
        embedding = loader.source.read(f"{loader.modules['transformer.wte'][0]}.weight")
        loader.check_tied_copy(embedding, embedding.dtype, "cpu")


def _packed(loader: Loader, name: str, parts: Sequence[str]) -> Iterator[PlannedTensor]:
    """qweight, qzeros, scales and g_idx of one module, its stored parts side by side."""
    entries = loader.source.entries()
    packings = {part: loader.packing_of(part) for part in parts}
    gptq = packings[parts[0]]
    if gptq is None or any(packing is None for packing in packings.values()):
        raise UnsupportedError(
            f"Of {', '.join(parts)} some are quantized and some are not, so they cannot be one tensor.",
            "Keep the Qwen2 layout, which stores them apart.",
        )
    if any(packing != gptq for packing in packings.values()):
        raise UnsupportedError(
            f"{', '.join(f'{part} is {packing}' for part, packing in packings.items())}: these cannot be "
            "one tensor.",
            "Keep the Qwen2 layout, which stores them apart.",
        )
    columns = entries[f"{parts[0]}.qweight"].shape[0] * 32 // gptq.bits
    order = _group_of_column(loader, gptq, parts[0], columns)
    for part in parts[1:]:
        if not torch.equal(_group_of_column(loader, gptq, part, columns), order):
            raise UnsupportedError(
                f"The inputs of {part} are grouped in another order (g_idx) than those of {parts[0]}, "
                "so they cannot be one tensor.",
                "Keep the Qwen2 layout, which stores them apart, or convert to GGUF.",
            )
    for kind in ("qweight", "qzeros", "scales"):
        stored = [f"{part}.{kind}" for part in parts]
        dtypes = {DTYPES[entries[part].dtype] for part in stored}
        dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        rows, widths = entries[stored[0]].shape[0], [entries[part].shape[1] for part in stored]
        read = partial(_side_by_side, loader, gptq, stored, dtype)
        release = partial(_release, loader, stored)
        yield PlannedTensor(f"{name}.{kind}", (rows, sum(widths)), dtype, read, release)
    yield PlannedTensor.of(f"{name}.g_idx", order)


def _group_of_column(loader: Loader, gptq: GPTQConfig, part: str, columns: int) -> Tensor:
    if f"{part}.g_idx" in loader.source.entries():
        return loader.source.read(f"{part}.g_idx").clone()
    size = columns if gptq.group_size == -1 else gptq.group_size
    return torch.arange(columns, dtype=torch.int32) // size


def _side_by_side(loader: Loader, gptq: GPTQConfig, stored: Sequence[str], dtype: torch.dtype) -> Tensor:
    tensors = [loader.source.read(name) for name in stored]
    whole = tensors[0] if len(tensors) == 1 else torch.cat([t.to(dtype) for t in tensors], dim=1)
    if stored[0].endswith(".qzeros") and not gptq.zeros_minus_one:
        # The later "gptq_v2" stores zero points plainly; what is written is the convention all engines read.
        return pack_zeros(unpack_zeros(whole, gptq.bits, stored_minus_one=False), gptq.bits)
    return whole
