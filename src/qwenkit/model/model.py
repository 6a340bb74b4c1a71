"""One definition for Qwen 1.8B/7B/14B/72B and the dense Qwen1.5, 2 and 2.5 (reference: model sections 2, 3).

Module names are those of the original checkpoints, so v1 tensors, LoRA targets and saved adapters fit
without a map. Queries, keys and values are one projection; w1 is "up", w2 is the gate.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qwenkit.kernels import add_rms_norm, rms_norm, silu_gate
from qwenkit.model.batch import TokenBatch
from qwenkit.model.config import ModelConfig
from qwenkit.model.rope import logn_factors


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class AddRMSNorm(RMSNorm):
    """Adds the residual and normalises the sum in one pass over memory: (sum, norm), both like x."""

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return add_rms_norm(x, residual, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.split = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self.c_attn = nn.Linear(config.hidden_size, config.qkv_size, bias=True)
        self.c_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, batch: TokenBatch, angles: tuple[Tensor, Tensor], logn: Tensor | None
    ) -> Tensor:
        qkv = self.c_attn(x).view(*x.shape[:2], -1, self.head_dim)
        return self.c_proj(batch.self_attention(self.layer, qkv, self.split, angles, logn))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.w2 = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.c_proj = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(silu_gate(self.w1(x), self.w2(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config, layer)
        self.ln_2 = AddRMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, batch: TokenBatch, angles: tuple[Tensor, Tensor], logn: Tensor | None
    ) -> Tensor:
        attended = self.attn(self.ln_1(x), batch, angles, logn)
        x, normed = self.ln_2(attended, x)
        return x + self.mlp(normed)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Embedding, blocks and final norm: tokens [b, s] -> hidden states [b, s, h]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.shape = config
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.norm_eps)
        self.gradient_checkpointing = False  # True recomputes each block in the backward pass

    def forward(self, tokens: Tensor | None, batch: TokenBatch, embeddings: Tensor | None = None) -> Tensor:
        """`embeddings` [b, s, h] replaces the lookup of `tokens`. NTK and LogN are off in training mode."""
        if embeddings is None:
            if tokens is None:
                raise ValueError("Transformer.forward needs tokens or embeddings.")
            embeddings = self.wte(tokens)
        x = embeddings
        shape = self.shape
        angles = batch.angles(shape.rotary_dim, shape.rope_base, ntk=not self.training)
        logn = None
        if shape.logn and not self.training and batch.longest > shape.seq_length:
            logn = logn_factors(batch.positions, shape.seq_length)
        if self.gradient_checkpointing and self.training:
            for block in self.h:
                x = checkpoint(block, x, batch, angles, logn, use_reentrant=False)
        else:
            x = batch.through(self.h, x, angles, logn)
        return self.ln_f(x)  # type: ignore[no-any-return]


class CausalLM(nn.Module):
    """A Transformer and its output projection: tokens [b, s] -> logits [b, s, vocab], weights' dtype."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.shape = config
        self.transformer = Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(self, tokens: Tensor, batch: TokenBatch, last: int = 0, at: Tensor | None = None) -> Tensor:
        """Logits of every position, of the `last` ones, or of the slots `at` (int64 [n]) of each row."""
        hidden = self.transformer(tokens, batch)
        chosen = hidden[:, -last:] if at is None else hidden.index_select(1, at)
        return output_logits(self.lm_head, chosen)

    @torch.no_grad()
    def initialize(self, seed: int = 0) -> CausalLM:
        """Random weights as the original drew them: N(0, r), c_proj N(0, r / sqrt(2 layers)), zero biases."""
        generator = torch.Generator().manual_seed(seed)
        std = self.shape.initializer_range
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif p.dim() == 1:
                p.fill_(1.0)
            elif name.endswith("c_proj.weight"):
                p.normal_(0, std / math.sqrt(2 * self.shape.num_layers), generator=generator)
            else:
                p.normal_(0, std, generator=generator)
        return self


def output_logits(lm_head: nn.Module, hidden: Tensor) -> Tensor:
    """Logits [b, s, vocab] of hidden states [b, s, h], which may be a strided part of a longer sequence.

    The product is taken as one matrix: of a strided [b, 1, h] torch would make a batched product, which
    first copies the whole weight and takes ten times as long.
    """
    logits: Tensor = lm_head(hidden.reshape(-1, hidden.shape[-1]))
    return logits.view(*hidden.shape[:-1], logits.shape[-1])


def causal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits[:, :-1] against labels[:, 1:]; label -100 is ignored. Scalar."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
