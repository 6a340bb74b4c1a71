"""Asking a model for the middle of a text: prefix, suffix, and then what belongs between them.

The order and the tokens of Qwen2.5-Coder (arXiv:2409.12186); the vocabulary of Qwen2.5 has them, that of 2023
does not.
"""

from __future__ import annotations

from qwenkit.core import Infill, UnsupportedError
from qwenkit.text.tokenizer import Tokenizer

_PREFIX, _SUFFIX, _MIDDLE = _MARKS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
_AFTER = (*_MARKS, "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")


def known(tokenizer: Tokenizer) -> bool:
    """Whether the vocabulary has the tokens for it."""
    return tokenizer.special_tokens.keys() >= set(_MARKS)


def encode(tokenizer: Tokenizer, infill: Infill) -> list[int]:
    """The prompt for the middle; no text becomes a control token. Raises UnsupportedError if not known."""
    if not known(tokenizer):
        raise UnsupportedError(
            f"This model cannot fill in before a suffix: its vocabulary has no {_PREFIX}.",
            "Use a Qwen2.5-Coder, or ask for it in words.",
        )
    prefix, suffix, middle = (tokenizer.special_tokens[mark] for mark in _MARKS)
    before = infill.prefix
    ids = tokenizer.encode(before) if isinstance(before, str) else list(before)
    return [prefix, *ids, suffix, *tokenizer.encode(infill.suffix), middle]


def stop_token_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What ends a middle beside the end of a text: tokens that begin something else."""
    return tuple(tokenizer.special_tokens[name] for name in _AFTER if name in tokenizer.special_tokens)
