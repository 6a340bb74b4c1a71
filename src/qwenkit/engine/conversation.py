"""From a conversation to the tokens of its prompt: checking what is given, telling what is left out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from qwenkit.core import GenerationConfig, Message, RequestError
from qwenkit.text import Tokenizer, chatml
from qwenkit.text.chatml import Context


def chat_context(
    tokenizer: Tokenizer,
    generation: GenerationConfig,
    query: str,
    history: Sequence[tuple[str, str]] | None,
    system: str | None,
    max_window_size: int | None,
    *,
    stacklevel: int,
) -> Context:
    """The ChatML prompt for `query` after `history`; what is None comes from `generation`.

    Turns left out for max_window_size are told by a UserWarning, placed `stacklevel` calls up.
    Raises RequestError for a query, turn or window of the wrong kind.
    """
    if not isinstance(query, str):
        raise RequestError(f"query is {type(query).__name__}.", "Give a string.")
    turns = list(history or ())
    for turn in turns:
        if not isinstance(turn, (tuple, list)) or len(turn) != 2 or not all(isinstance(t, str) for t in turn):
            raise RequestError(
                f"history contains {turn!r}.", "Each turn must be a pair of strings: (query, reply)."
            )
    window = generation.max_window_size if max_window_size is None else max_window_size
    if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
        raise RequestError(f"max_window_size={window!r}.", "Give a whole number of tokens, at least 1.")
    context = chatml.make_context(
        tokenizer,
        query,
        turns,
        generation.default_system if system is None else system,
        max_window_size=window,
    )
    if context.dropped_turns:
        warnings.warn(
            f"The {context.dropped_turns} oldest of {len(turns)} turns were left out: with them system "
            f"prompt and history exceed max_window_size={window} tokens. Pass a larger one to keep them.",
            stacklevel=stacklevel + 1,
        )
    return context


def messages_prompt(
    tokenizer: Tokenizer, generation: GenerationConfig, messages: Sequence[Message]
) -> list[int]:
    """The ChatML prompt for the assistant's turn after `messages`. Raises RequestError, as chatml.encode."""
    check_messages(messages)
    return chatml.encode(tokenizer, messages, default_system=generation.default_system)


def check_messages(messages: Sequence[Message]) -> None:
    """Raise RequestError unless they are messages."""
    for i, message in enumerate(messages):
        if not isinstance(message, Message):
            raise RequestError(
                f"Message {i} is {type(message).__name__}.", "Give Message(role, content) objects."
            )


def warn_base_model(name: str, stacklevel: int) -> None:
    """Tell who chats with a base model that what comes back is not the program's fault."""
    warnings.warn(
        f"{name} is a base model: it completes text and was not trained to chat, so replies may be off the "
        "point or run on. Use generate(), or load its -Chat or -Instruct sibling.",
        stacklevel=stacklevel + 1,
    )
