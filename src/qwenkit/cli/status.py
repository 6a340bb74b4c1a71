"""What is said about a reply after it: its size and speed, and anything the user must know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenkit.core import Completion


def summary(completion: Completion) -> str:
    """One line: tokens, tokens a second while decoding, seconds to the first token."""
    tokens = completion.usage.completion_tokens
    parts = [f"{tokens} token{'' if tokens == 1 else 's'}"]
    timings = completion.timings
    if tokens > 1 and timings.decode_s > 0:  # the first token belongs to prefill
        parts.append(f"{(tokens - 1) / timings.decode_s:.1f} tok/s")
    if timings.ttft_s > 0:
        parts.append(f"first after {timings.ttft_s:.2f} s")
    parts.append(f"prompt {completion.usage.prompt_tokens}")
    return " · ".join(parts)


@dataclass(frozen=True)
class Caution:
    """`text` says what happened; `in_chat` what can be typed in a conversation to change it."""

    text: str
    in_chat: str


def cautions(completion: Completion, *, max_tokens: int | None, max_window_size: int | None) -> list[Caution]:
    """Why the reply may be incomplete, or was given with less than the whole conversation.

    max_tokens, max_window_size: the limits that were in force, to tell which one acted.
    """
    found = []
    if completion.dropped_turns:
        count = completion.dropped_turns
        text = (
            f"The oldest {'turn was' if count == 1 else f'{count} turns were'} left out: the history "
            f"is longer than max_window_size={max_window_size} tokens."
        )
        found.append(Caution(text, ":conf max_window_size=N allows more."))
    if completion.finish_reason == "length":
        if max_tokens is not None and completion.usage.completion_tokens >= max_tokens:
            text = f"The reply was cut at max_tokens={max_tokens}."
            found.append(Caution(text, ":conf max_tokens=N allows more."))
        else:
            found.append(Caution("The reply was cut: the context is full.", ":clh or :undo makes room."))
    return found
