"""The keys and values of all running requests in blocks, and the tokens of a step that attend over them.

Knows the model's shape and block numbers; which block belongs to whom is the scheduler's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qwenkit.engine.blocks import BlockCopy
from qwenkit.engine.scheduler import Step
from qwenkit.kernels import paged_layer
from qwenkit.kernels.key_form import KeyForm
from qwenkit.kernels.native_stack import NativeStack
from qwenkit.kernels.nibbles import GROUP
from qwenkit.kernels.paged import KVFormat, PagedLayer, PagedShape, RaggedRows
from qwenkit.model import ModelConfig, TokenBatch
from qwenkit.model.rope import rotary_table

BLOCK_TOKENS = 32
"""Tokens of a block: what the kernels take at once, and the grain at which prompts share their beginnings."""


class PagedCache:
    """`blocks` blocks of `block_size` tokens for every layer of a model.

    dtype: what the model computes in. windows: tokens each layer may look back, itself included; None: all.
    key_forms: of the formats FORMED, what the keys of each layer have in common.
    Memory is reserved at once and, on a CPU, taken from the system as blocks are first written.
    """

    def __init__(
        self,
        config: ModelConfig,
        blocks: int,
        *,
        dtype: torch.dtype,
        format: KVFormat = "float",
        device: torch.device | str = "cpu",
        block_size: int = BLOCK_TOKENS,
        windows: Sequence[int | None] | None = None,
        key_forms: Sequence[KeyForm] | None = None,
    ) -> None:
        shape = PagedShape(
            blocks, block_size, config.num_heads, config.num_kv_heads, config.head_dim, dtype, format
        )
        self.shape = shape
        self.layers: list[PagedLayer] = []
        for i in range(config.num_layers):
            form = key_forms[i] if key_forms else None
            self.layers.append(paged_layer(shape, device, form, self.layers[0] if i else None))
        self.windows = tuple(windows or [None] * config.num_layers)

    @property
    def tokens(self) -> int:
        """Tokens it holds, of all requests together."""
        return self.shape.blocks * self.shape.block_size

    @property
    def nbytes(self) -> int:
        """Memory when every block is in use."""
        return sum(layer.nbytes for layer in self.layers)

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Carry out a step's copies, in every layer."""
        if copies:
            for layer in self.layers:
                layer.copy(copies)


def kv_token_bytes(config: ModelConfig, dtype: torch.dtype, format: KVFormat) -> int:
    """Bytes a token takes in the cache, over all layers; a head of 8 bits has a float32 scale and minimum.

    Of 4 bits, 32 channels have those in bfloat16, and angles are kept once for all layers.
    """
    if format == "float":
        return config.kv_bytes_per_token(dtype.itemsize)
    if format == "int4":
        groups = -(-config.head_dim // GROUP)
        heads = 2 * config.num_layers * config.num_kv_heads
        return heads * groups * (GROUP // 2 + 4) + config.head_dim // 2 * 4
    return config.kv_bytes_per_token(1) + 2 * config.num_layers * config.num_kv_heads * 8


@dataclass(frozen=True, eq=False, kw_only=True)
class RaggedBatch(TokenBatch):
    """The rows of a step, one after the other in a single row [1, tokens]. ntk_alpha: one factor a row.

    stack: the model's blocks over this cache in one call, if there is such a thing.
    """

    rows: RaggedRows
    cache: PagedCache
    stack: NativeStack | None = None

    @classmethod
    def of(
        cls,
        step: Step,
        cache: PagedCache,
        device: torch.device | str = "cpu",
        stack: NativeStack | None = None,
    ) -> RaggedBatch:
        """The tokens of a scheduler's step."""
        rows = RaggedRows.make(
            [row.start for row in step.rows],
            [row.count for row in step.rows],
            [row.block_table for row in step.rows],
            device,
        )
        return cls(
            positions=rows.positions[None],
            ntk_alpha=tuple(row.ntk_alpha for row in step.rows),
            longest=max(row.start + row.count for row in step.rows),
            rows=rows,
            cache=cache,
            stack=stack,
        )

    def angles(self, dim: int, base: float, *, ntk: bool) -> tuple[Tensor, Tensor]:
        kinds = tuple(dict.fromkeys(self.ntk_alpha)) if ntk else (1.0,)
        cos, sin = rotary_table(self.positions.expand(len(kinds), -1), dim, base, kinds)
        if len(kinds) == 1:
            return cos, sin
        kind = torch.tensor([kinds.index(alpha) for alpha in self.ntk_alpha])
        of_token = torch.repeat_interleave(kind, self.rows.offsets.diff()).to(cos.device)
        slot = torch.arange(cos.shape[1], device=cos.device)
        return cos[None, of_token, slot], sin[None, of_token, slot]

    def self_attention(
        self, layer: int, qkv: Tensor, split: list[int], angles: tuple[Tensor, Tensor], logn: Tensor | None
    ) -> Tensor:
        out = self.cache.layers[layer].attend(
            qkv[0],
            (angles[0][0], angles[1][0]),
            None if logn is None else logn[0],
            self.rows,
            self.cache.windows[layer],
        )
        return out.view(1, out.shape[0], -1)

    def through(
        self, blocks: Iterable[nn.Module], x: Tensor, angles: tuple[Tensor, Tensor], logn: Tensor | None
    ) -> Tensor:
        if self.stack is None:
            return super().through(blocks, x, angles, logn)
        turned = angles[0][0], angles[1][0]
        return self.stack.run(x[0], turned, None if logn is None else logn[0], self.rows)[None]
