"""What a request may begin with, and its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias, cast

from qwenkit.core import ContextLengthError, GenerationConfig, Infill, Message, RequestError, Turn
from qwenkit.engine.conversation import messages_prompt
from qwenkit.text import Tokenizer, chatml, infill

Prompt: TypeAlias = str | Sequence[int] | Sequence[Message] | Sequence[Turn] | Infill
"""A text as it stands, token ids, messages or turns that get the chat template, or a text with a gap."""


def is_conversation(prompt: Prompt) -> bool:
    """Whether a chat's next turn is asked for."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], (Message, Turn))


def prompt_ids(
    tokenizer: Tokenizer, generation: GenerationConfig, prompt: Prompt, *, parse_special: bool = False
) -> list[int]:
    """parse_special: read `<|im_start|>` and the like in a text as control tokens.

    Raises RequestError as chatml.encode does, UnsupportedError for a gap that the vocabulary
    has no tokens for.
    """
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, allow_special=parse_special)
    if isinstance(prompt, Infill):
        return infill.encode(tokenizer, prompt)
    if not isinstance(prompt, Sequence):
        raise RequestError(f"A prompt is {type(prompt).__name__}.", "Give a string or a list of strings.")
    if prompt and isinstance(prompt[0], Message):
        return messages_prompt(tokenizer, generation, cast("Sequence[Message]", prompt))
    if prompt and isinstance(prompt[0], Turn):
        return chatml.encode_turns(tokenizer, cast("Sequence[Turn]", prompt))
    return list(cast("Sequence[int]", prompt))


def check_length(tokenizer: Tokenizer, prompt: Prompt, name: str, limit: int) -> None:
    """Refuse, before seconds are spent on its tokens, a prompt that is sure to have more than `limit`.

    Raises ContextLengthError.
    """
    fewest = sum(map(tokenizer.fewest_tokens, _texts(prompt)))
    if fewest > limit:
        raise ContextLengthError(
            f"{name} has at least {fewest} tokens; the context of this model is {limit} tokens for prompt "
            "and reply.",
            "Shorten it.",
        )


def _texts(prompt: Prompt) -> Iterator[str]:
    """What is still to be tokenized."""
    if isinstance(prompt, str):
        yield prompt
        return
    parts = (prompt.prefix, prompt.suffix) if isinstance(prompt, Infill) else prompt
    for part in parts:
        if isinstance(part, Message):
            yield part.content
        elif isinstance(part, Turn):
            yield from (text for text in part.parts if isinstance(text, str))
        elif isinstance(part, str):
            yield part
