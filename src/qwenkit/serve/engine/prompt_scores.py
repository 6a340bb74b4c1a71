"""How likely a prompt's own tokens are: what `echo` with `logprobs` asks of the engine's process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenkit.serve.engine.messages import PromptToken

if TYPE_CHECKING:
    from qwenkit.engine import Qwen


def prompt_scores(
    model: Qwen, ids: Sequence[int], top: int, given_up: threading.Event
) -> tuple[PromptToken, ...]:
    """Natural-log probability of each token given those before it, and of the `top` likeliest there.

    Takes turns with the requests that run. given_up: set when nobody wants them any more. Raises RequestError
    as Qwen.distributions.
    """
    name = model.tokenizer.token_bytes
    scored = [PromptToken(name(ids[0]), None)]
    if len(ids) < 2:  # nothing precedes the only token
        return tuple(scored)
    for rows in () if given_up.is_set() else model.distributions(list(ids)):
        if given_up.is_set():
            break
        for row in rows:
            token = ids[len(scored)]
            best = row.topk(top) if top else None
            alternatives = (
                ()
                if best is None
                else tuple(
                    (i, name(i), v)
                    for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                    if v > float("-inf")
                )
            )
            scored.append(PromptToken(name(token), float(row[token]), alternatives))
    return tuple(scored)
