"""Linear layers as a few words and their tensors, and back: for whoever keeps packed layers somewhere."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from qwenkit.kernels.native import AffineShape
from qwenkit.quant.affine import AffineLinear, FusedLinear
from qwenkit.quant.k_quants import codes_from_k_blocks
from qwenkit.quant.packed import PackedBf16Linear, PackedLinear
from qwenkit.quant.rtn import round_to_nearest


def record_layer(layer: nn.Module) -> dict[str, Any] | None:
    """What `rebuild_layer` must know beside the tensors of its state_dict, as JSON values.

    None for a module that is no packed layer.
    """
    if isinstance(layer, PackedLinear):
        return {"kind": "affine", "shape": asdict(layer.shape), "activations": layer.activations}
    if isinstance(layer, PackedBf16Linear):
        return {"kind": "bf16", "rows": layer.out_features, "columns": layer.in_features}
    if isinstance(layer, AffineLinear):
        return {"kind": "codes", "bits": layer.bits}
    if isinstance(layer, FusedLinear):
        return {"kind": "fused", "parts": [record_layer(part) for part in layer.parts]}
    return None


def rebuild_layer(record: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """The layer of `record_layer`, on these tensors; they are not copied."""
    kind = record["kind"]
    if kind == "affine":
        return PackedLinear(
            AffineShape(**record["shape"]),
            tensors["packed"],
            tensors.get("gather"),
            tensors.get("bias"),
            record["activations"],
        )
    if kind == "bf16":
        return PackedBf16Linear(record["rows"], record["columns"], tensors["packed"], tensors.get("bias"))
    if kind == "codes":
        return AffineLinear(**{"bias": None, **tensors}, bits=record["bits"])  # type: ignore[arg-type]
    parts = []
    for i, part in enumerate(record["parts"]):
        stem = f"parts.{i}."
        own = {name.removeprefix(stem): t for name, t in tensors.items() if name.startswith(stem)}
        parts.append(rebuild_layer(part, own))
    return FusedLinear(parts)


@cache
def layout_fingerprint() -> str:
    """Changes whenever the bytes of a packed weight do: packed bytes kept under another one are worthless."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 200, generator=generator)
    digest = hashlib.sha256()
    for bits, group in ((4, 32), (4, 128), (8, 32), (8, 128)):
        layer = PackedLinear.from_affine(round_to_nearest(weight, bits, group))
        digest.update(layer.packed.numpy().tobytes())
    points = torch.arange(80, dtype=torch.uint8).view(2, 40) % 16
    layer = PackedLinear.from_codes(
        torch.arange(40 * 200).view(40, 200).remainder(13).to(torch.uint8),
        torch.ones(2, 40),
        bits=4,
        group_of_column=torch.arange(200, dtype=torch.int32) % 2,
        zeros=points,
    )
    digest.update(layer.packed.numpy().tobytes())
    for kind, size in (("Q4_K", 144), ("Q6_K", 210)):
        blocks = torch.arange(40 * size).view(40, size).mul(7).remainder(61).to(torch.uint8)
        layer = PackedLinear.from_affine(codes_from_k_blocks(blocks, kind))
        digest.update(layer.packed.numpy().tobytes())
    linear = nn.Linear(200, 40, bias=False)
    linear.weight = nn.Parameter(weight.bfloat16(), requires_grad=False)
    digest.update(PackedBf16Linear.from_linear(linear).packed.numpy().tobytes())
    return digest.hexdigest()[:16]
