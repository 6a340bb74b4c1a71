"""How much the predictions of one checkpoint differ from another's on the same text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.core import RequestError
from qwenkit.engine import Qwen
from qwenkit.eval.windows import Window
from qwenkit.text import Tokenizer


@dataclass(frozen=True)
class Comparison:
    """Of `tokens` positions: the Kullback-Leibler divergence of b from a, in nats a token, and how often
    both find the same token likeliest; losses: nats a token of both on the text itself.
    """

    tokens: int
    mean: float
    median: float
    p99: float
    largest: float
    top1: float
    loss_a: float
    loss_b: float


def compare(
    a: Qwen, b: Qwen, windows: Sequence[Window], *, progress: Callable[[int], object] | None = None
) -> Comparison:
    """KL(a || b), the sum of p_a (log p_a - log p_b) over the vocabulary, and top-1 agreement.

    Both see the same token ids; rows that pad one vocabulary beyond the other are left out. Raises
    RequestError unless both models know the same tokens, or if a window exceeds a context.
    """
    size = min(a.engine.vocabulary.size, b.engine.vocabulary.size)
    if not _same_tokens(a.tokenizer, b.tokenizer):
        raise RequestError(
            f"The models have different vocabularies ({len(a.tokenizer)} and {len(b.tokenizer)} tokens).",
            "Distributions over different tokens cannot be compared; compare their perplexity a byte.",
        )
    divergences: list[Tensor] = []
    agreed, losses = 0, torch.zeros(2, dtype=torch.float64)
    for window in windows:
        at = 1
        for p, q in zip(a.distributions(window.ids), b.distributions(window.ids), strict=True):
            p, q = p[:, :size].cpu(), q[:, :size].cpu()
            targets = torch.tensor(window.ids[at : at + len(p)])[:, None]
            losses -= torch.stack((p.gather(1, targets).sum(), q.gather(1, targets).sum())).double()
            agreed += int((p.argmax(-1) == q.argmax(-1)).sum())
            divergences.append(divergence(p, q))
            at += len(p)
        if progress is not None:
            progress(len(window.ids))
    all_of = torch.cat(divergences)
    tokens = all_of.numel()
    return Comparison(
        tokens,
        float(all_of.mean()),
        float(all_of.median()),
        float(all_of.kthvalue(max(1, tokens * 99 // 100)).values),
        float(all_of.max()),
        agreed / tokens,
        *(losses / tokens).tolist(),
    )


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL divergence of q from p, both natural-log probabilities [n, vocabulary]; float64 [n]."""
    term = p.exp() * (p - q)
    return torch.where(p == -torch.inf, 0.0, term).sum(-1, dtype=torch.float64).clamp_min(0)


def _same_tokens(a: Tokenizer, b: Tokenizer) -> bool:
    holes = a.ids_without_text(len(a))
    if len(a) != len(b) or holes != b.ids_without_text(len(b)):
        return False
    return all(a.token_bytes(i) == b.token_bytes(i) for i in set(range(len(a))).difference(holes))
