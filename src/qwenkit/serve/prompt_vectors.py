"""Vectors for inputs: what `/v1/embeddings` asks of the engine's process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qwenkit.serve.messages import Embed, Embedded

if TYPE_CHECKING:
    from qwenkit.engine import Qwen


def prompt_vectors(model: Qwen, ask: Embed, progress: Callable[[int], object]) -> Embedded:
    """Raises what Qwen.embed raises, and what `progress` does between two passes."""
    from qwenkit.engine.embed import read_inputs

    inputs = read_inputs(ask.inputs, model.engine.vocabulary, model.embedding_limit)
    vectors = model.embed(inputs, pooling=ask.pooling, progress=progress)
    packed = tuple(row.tobytes() for row in vectors.numpy().astype("<f4"))
    return Embedded(ask.id, packed, sum(map(len, inputs)))
