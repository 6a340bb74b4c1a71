"""The exact prompt the model gets, for --show-prompt: text with control tokens, then the token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwenkit.cli.terminal import printable

if TYPE_CHECKING:
    from qwenkit.cli.loading import ChatModel


def prompt_view(
    model: ChatModel,
    query: str,
    history: Sequence[tuple[str, str]],
    system: str | None,
    max_window_size: int | None,
) -> str:
    """Made by the same function that makes the prompt of `chat`, so it cannot differ from it."""
    from qwenkit.text import chatml

    generation = model.generation
    context = chatml.make_context(
        model.tokenizer,
        query,
        list(history),
        generation.default_system if system is None else system,
        max_window_size=generation.max_window_size if max_window_size is None else max_window_size,
    )
    ids = context.token_ids
    text = model.tokenizer.decode(ids)
    return f"prompt of {len(ids)} tokens:\n{printable(text)}\nids: {' '.join(map(str, ids))}"
