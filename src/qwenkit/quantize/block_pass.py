"""One block over the calibration texts, in the stages between which its linear layers are rounded.

The same stages with nothing between them move the texts through a block that is finished, or was never to be
rounded: the numbers are the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from qwenkit.kernels import native, rms_norm, silu_gate
from qwenkit.model import Block
from qwenkit.quant import PackedBf16Linear
from qwenkit.quantize.hidden import Chunk, HiddenStates

GATED_BYTES = 2 << 30
"""What a pass keeps of the gated products between the last two stages; what goes beyond is computed twice."""


class BlockPass:
    """A block and the hidden states that pass through it.

    Stages, each to be run over all of the texts before the next: `normed` feeds c_attn, `attended` c_proj,
    `middle` w1 and w2, `gated` the MLP's c_proj, `finish` ends it. progress: told the tokens of each chunk.
    """

    def __init__(
        self, block: Block, hidden: HiddenStates, progress: Callable[[int], object] = lambda tokens: None
    ) -> None:
        self.block, self.hidden, self.progress = block, hidden, progress
        inner = block.attn.c_proj.in_features
        self._attended = torch.empty(len(hidden), inner, dtype=hidden.values.dtype)
        self._gated: dict[int, Tensor] = {}

    def normed(self) -> Iterator[Tensor]:
        """Inputs of c_attn: [n, hidden]."""
        for chunk in self.hidden.chunks:
            yield self.block.ln_1(self.hidden.values[chunk.tokens])

    def attended(self) -> Iterator[Tensor]:
        """Inputs of attn.c_proj: [n, heads * head_dim]."""
        attn = self.block.attn
        with _fast(self.hidden.values.dtype, attn, "c_attn"):
            for chunk in self._watched():
                qkv = attn.c_attn(self.block.ln_1(self.hidden.values[chunk.tokens]))
                first = chunk.spans[0].start
                for span in chunk.spans:
                    one = qkv[span.start - first : span.end - first].view(1, len(span), -1, attn.head_dim)
                    mixed = span.batch.self_attention(attn.layer, one, attn.split, span.angles, span.logn)
                    self._attended[span.start : span.end] = mixed[0]
                yield self._attended[chunk.tokens]

    def middle(self) -> Iterator[Tensor]:
        """Inputs of mlp.w1 and mlp.w2: [n, hidden]. Adds the attention's output to the hidden states."""
        with _fast(self.hidden.values.dtype, self.block.attn, "c_proj"):
            for chunk in self._watched():
                x = self.hidden.values[chunk.tokens]
                x += self.block.attn.c_proj(self._attended[chunk.tokens])
                yield self._ln_2(x)
        self._attended = self._attended[:0]

    def gated(self) -> Iterator[Tensor]:
        """Inputs of mlp.c_proj: [n, ffn]."""
        with _fast(self.hidden.values.dtype, self.block.mlp, "w1", "w2"):
            room = GATED_BYTES
            for chunk in self._watched():
                product = self._gate(chunk)
                room -= product.nbytes
                if room >= 0:
                    self._gated[chunk.tokens.start] = product
                yield product

    def finish(self) -> None:
        """Add the MLP's output to the hidden states, which are then those of the next block."""
        with _fast(self.hidden.values.dtype, self.block.mlp, "w1", "w2", "c_proj"):
            for chunk in self._watched():
                product = self._gated.pop(chunk.tokens.start, None)
                if product is None:
                    product = self._gate(chunk)
                self.hidden.values[chunk.tokens] += self.block.mlp.c_proj(product)

    @property
    def skipped(self) -> int:
        """Tokens that `run` does not report and rounding would."""
        return len(self.hidden)

    def run(self) -> None:
        """All stages, nothing rounded between them."""
        for stage in (self.attended(), self.middle()):
            for _ in stage:
                pass
        self.finish()

    def _gate(self, chunk: Chunk) -> Tensor:
        x = self._ln_2(self.hidden.values[chunk.tokens])
        return silu_gate(self.block.mlp.w1(x), self.block.mlp.w2(x))

    def _ln_2(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.block.ln_2.weight, self.block.ln_2.eps)

    def _watched(self) -> Iterator[Chunk]:
        for chunk in self.hidden.chunks:
            yield chunk
            self.progress(len(chunk))


@contextlib.contextmanager
def _fast(dtype: torch.dtype, parent: nn.Module, *names: str) -> Iterator[None]:
    """The named linear layers in the dtype of the computation meanwhile, packed where kernels take them."""
    layers = {name: cast(nn.Linear, parent.get_submodule(name)) for name in names}
    try:
        for name, layer in layers.items():
            setattr(parent, name, linear(layer.weight, layer.bias, dtype))
        yield
    finally:
        for name, layer in layers.items():
            setattr(parent, name, layer)


def linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Module:
    """A linear layer that computes in `dtype`: by the native kernels where these take it, else by torch."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return PackedBf16Linear.from_linear(layer) if dtype == torch.bfloat16 and native.ready() else layer
