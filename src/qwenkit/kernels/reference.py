"""Every operator in plain torch: readable, differentiable, and the oracle for faster ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang & Sennrich 2019, arXiv:1910.07467).

    x: [..., h] in T; weight: [h]. Normalised in float32, cast back to T, then scaled in T, in that
    order: the original rounds before the weight, and so must we to match it in 16 bits.
    """
    xf = x.float()
    normalised = xf * torch.rsqrt(xf.pow(2).mean(-1, keepdim=True) + eps)
    return normalised.to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + residual, rms_norm of that); all [..., h] of one dtype."""
    total = x + residual
    return total, rms_norm(total, weight, eps)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (j, j + r/2) by their position's angle (Su et al. 2021, arXiv:2104.09864).

    x: [b, s, heads, d] in T; cos, sin: [b or 1, s, r] float32 with r <= d; channels past r pass through.
    Computed in float32, returned in T.
    """
    r = cos.shape[-1]
    rotated, passed = x[..., :r].float(), x[..., r:]
    first, second = rotated.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # one angle for all heads
    out = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((out.to(x.dtype), passed), dim=-1) if passed.shape[-1] else out.to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False) -> Tensor:
    """Scaled dot-product attention with grouped heads: softmax(q k^T / sqrt(d) + mask) v.

    q: [b, heads, s, d]; k, v: [b, kv_heads, K, d], heads a multiple of kv_heads.
    mask: bool [b, 1, s, K], True where a key may be seen, or None for all; a row that may see nothing
    (padding) gives zeros. `causal` with no mask means s == K and each query sees its own past.
    Returns [b, heads, s, d].
    """
    b, heads, s, d = q.shape
    kv_heads = k.shape[1]
    if kv_heads != heads and s == 1:
        # The queries of a group share their keys: fold them into the query axis, copy nothing.
        folded = q.view(b, kv_heads, heads // kv_heads, d)
        out = F.scaled_dot_product_attention(folded, k, v, attn_mask=mask)
        return out.reshape(b, heads, s, d)
    if kv_heads != heads:
        k = k.repeat_interleave(heads // kv_heads, dim=1)
        v = v.repeat_interleave(heads // kv_heads, dim=1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if mask is not None:
        out = out.masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return out


def silu_gate(up: Tensor, gate: Tensor) -> Tensor:
    """SwiGLU's product (Shazeer 2020, arXiv:2002.05202): up * silu(gate), elementwise."""
    return up * F.silu(gate)


def affine_dequantize(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group_of_column: Tensor,
    dtype: torch.dtype,
    *,
    bits: int = 8,
) -> Tensor:
    """w[o, i] = scale[g, o] * (code[o, i] - zero[g, o]), g = group_of_column[i], in float32, cast to dtype.

    codes: uint8 [out, in], or for bits=4 [out, in / 2] with column 2j in the low half of byte j;
    scales: float [groups, out]; zeros: uint8 [groups, out]; group_of_column: int [in]. Returns [out, in].
    """
    if bits == 4:
        codes = torch.stack((codes & 0xF, codes >> 4), dim=-1).flatten(-2)
    out, columns = codes.shape
    groups = scales.shape[0]
    scale, zero = scales.float().t(), zeros.float().t()  # [out, groups]
    if columns % groups == 0:
        regular = torch.arange(columns, device=codes.device).div(columns // groups, rounding_mode="floor")
        if torch.equal(regular, group_of_column.long()):  # broadcast each group: no gather of its scales
            weight = codes.view(out, groups, -1).float().sub_(zero[..., None]).mul_(scale[..., None])
            return weight.view(out, columns).to(dtype)
    group = group_of_column.long()
    return (codes.float().sub_(zero[:, group]).mul_(scale[:, group])).to(dtype)


def affine_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group_of_column: Tensor,
    *,
    bits: int = 8,
    rows: int | None = None,
) -> Tensor:
    """x @ w^T for an affine weight, dequantizing `rows` output rows at a time to bound memory.

    x: [..., in]; the weight as in `affine_dequantize`. Returns [..., out] in x's dtype. By default the
    rows make a block of 2^18 weights on the CPU, which stays in its cache, and of 2^24 on a GPU.
    """
    if rows is None:
        rows = max(1, (2**18 if x.device.type == "cpu" else 2**24) // x.shape[-1])
    parts = [
        F.linear(
            x,
            affine_dequantize(
                codes[r : r + rows],
                scales[:, r : r + rows],
                zeros[:, r : r + rows],
                group_of_column,
                x.dtype,
                bits=bits,
            ),
        )
        for r in range(0, codes.shape[0], rows)
    ]
    return torch.cat(parts, dim=-1)
