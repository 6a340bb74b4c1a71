"""Vectors for inputs: what `/v1/embeddings` asks of the engine's process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from qwenkit.serve.engine.messages import Embed, Embedded

if TYPE_CHECKING:
    from qwenkit.engine import Qwen


def prompt_vectors(model: Qwen, ask: Embed, given_up: threading.Event) -> Embedded:
    """given_up: set when nobody wants them any more; the pass under way is then the last, and EOFError is
    raised. Raises what Qwen.embed raises."""
    from qwenkit.engine.embed import read_inputs

    def progress(_: int) -> None:
        if given_up.is_set():
            raise EOFError

    inputs = read_inputs(ask.inputs, model.engine.vocabulary, model.embedding_limit)
    vectors = model.embed(inputs, pooling=ask.pooling, progress=progress)
    packed = tuple(row.tobytes() for row in vectors.numpy().astype("<f4"))
    return Embedded(ask.id, packed, sum(map(len, inputs)))
