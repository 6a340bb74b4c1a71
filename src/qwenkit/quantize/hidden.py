"""The calibration texts as hidden states: one buffer, from the embedding through every block in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qwenkit.model import Batch, ModelConfig, ntk_alpha
from qwenkit.model.rope import logn_factors

_CHUNK = 4096  # tokens computed at once, in whole texts


@dataclass(frozen=True)
class Span:
    """Where one text lies in the buffer, and how its tokens attend."""

    start: int
    end: int
    batch: Batch
    angles: tuple[Tensor, Tensor]
    logn: Tensor | None

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Chunk:
    """Texts that lie side by side and are computed together."""

    spans: tuple[Span, ...]

    @property
    def tokens(self) -> slice:
        return slice(self.spans[0].start, self.spans[-1].end)

    def __len__(self) -> int:
        return self.spans[-1].end - self.spans[0].start


class HiddenStates:
    """values: [tokens of all texts, hidden], in the dtype of the computation; blocks change them in place."""

    def __init__(self, values: Tensor, chunks: Sequence[Chunk]) -> None:
        self.values = values
        self.chunks = tuple(chunks)

    @classmethod
    def embed(cls, texts: Sequence[Sequence[int]], embedding: Tensor, config: ModelConfig) -> HiddenStates:
        """texts: token ids, none empty; embedding: [vocab, hidden]."""
        values = torch.empty(sum(map(len, texts)), embedding.shape[1], dtype=embedding.dtype)
        spans, start, tables = [], 0, _Tables(config)
        for ids in texts:
            end = start + len(ids)
            values[start:end] = nn.functional.embedding(torch.tensor(ids), embedding)
            spans.append(Span(start, end, *tables.of(len(ids))))
            start = end
        return cls(values, list(chunked(spans)))

    def __len__(self) -> int:
        return len(self.values)


class _Tables:
    """Batch, rotary angles and LogN factors of a text, which depend on its length alone."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._known: dict[int, tuple[Batch, tuple[Tensor, Tensor], Tensor | None]] = {}

    def of(self, length: int) -> tuple[Batch, tuple[Tensor, Tensor], Tensor | None]:
        if length not in self._known:
            c = self._config
            alpha = ntk_alpha(length, c.seq_length) if c.dynamic_ntk else 1.0
            batch = Batch.make(1, length, ntk_alpha=(alpha,))
            angles = batch.angles(c.rotary_dim, c.rope_base, ntk=True)
            logn = logn_factors(batch.positions, c.seq_length) if c.logn and length > c.seq_length else None
            self._known[length] = batch, angles, logn
        return self._known[length]


def chunked(spans: Sequence[Span]) -> Iterator[Chunk]:
    """Texts that lie side by side, in the pieces that are computed at once."""
    held: list[Span] = []
    for span in spans:
        if held and span.end - held[0].start > _CHUNK:
            yield Chunk(tuple(held))
            held = []
        held.append(span)
    if held:
        yield Chunk(tuple(held))
