"""Passages, a question and its answer each, laid out as a model meets text: in turns or as one text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qwenkit.checkpoint import Checkpoint
from qwenkit.core import Message
from qwenkit.text import Tokenizer, chatml


@dataclass(frozen=True)
class Passage:
    question: str
    answer: str


def passage_samples(
    passages: Iterable[Passage], checkpoint: Checkpoint, tokenizer: Tokenizer, count: int, length: int
) -> list[tuple[int, ...]]:
    """At most `count` texts of `length` tokens; a chat model gets several turns in each, a base model text.

    A passage is used once; when all are, fewer texts come back. The last may be shorter.
    """
    found: list[tuple[int, ...]] = []
    turns: list[Passage] = []
    ids: list[int] = []
    for passage in passages:
        if len(found) == count:
            break
        turns.append(passage)
        ids = _laid_out(turns, checkpoint, tokenizer)
        if len(ids) >= length:
            found.append(tuple(ids[:length]))
            turns, ids = [], []
    if ids and len(found) < count:
        found.append(tuple(ids))
    return found


def _laid_out(turns: Sequence[Passage], checkpoint: Checkpoint, tokenizer: Tokenizer) -> list[int]:
    if not checkpoint.is_chat:
        return tokenizer.encode("\n\n".join(turn.answer for turn in turns))
    messages: list[Message] = []
    for turn in turns:
        messages += [Message("user", turn.question), Message("assistant", turn.answer)]
    return chatml.encode_training(tokenizer, messages, default_system=checkpoint.generation.default_system)[0]
