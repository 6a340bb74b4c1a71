"""The vocabulary in a GGUF file's metadata (model "gpt2"). Neither reads nor writes the file itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwenkit.core import TokenizerError
from qwenkit.text.merges import Pair, prove_merges, reconstruct_merges
from qwenkit.text.pretokenize import QWEN, gguf_name, pretokenizer_of_gguf
from qwenkit.text.tokenizer import Tokenizer
from qwenkit.text.vocabulary import from_letters, to_letters

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # gguf.TokenType


@dataclass(frozen=True)
class GGUFVocabulary:
    """The values of `tokenizer.ggml.{tokens,token_type,merges,pre}`."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str


def to_gguf(tokenizer: Tokenizer, rows: int) -> GGUFVocabulary:
    """The vocabulary for an embedding of `rows` rows; rows without text become unused tokens.

    Raises TokenizerError for more tokens than rows, a way of splitting text that GGUF has no name for, and
    two tokens that would be written alike.
    """
    if len(tokenizer) > rows:
        raise TokenizerError(
            f"The tokenizer has ids up to {len(tokenizer) - 1}, the embedding only {rows} rows.",
            "Tokenizer and weights must be of the same checkpoint.",
        )
    if tokenizer.nfc != (tokenizer.pretokenizer is QWEN):
        raise TokenizerError(
            f"{tokenizer.name} splits or normalises text in a way that GGUF cannot say.", "Keep the folder."
        )
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [_UNUSED] * rows
    for token, i in tokenizer.ranks.items():
        tokens[i], types[i] = to_letters(token), _NORMAL
    for form, i in tokenizer.special_tokens.items():
        tokens[i], types[i] = form, _USER_DEFINED if form in tokenizer.visible else _CONTROL
    if len(set(tokens)) != rows:
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise TokenizerError(f"Two tokens are written as {twice!r}.", "Give the special one another name.")
    merges = [
        f"{to_letters(left)} {to_letters(right)}" for left, right in reconstruct_merges(tokenizer.ranks)
    ]
    return GGUFVocabulary(tokens, types, merges, gguf_name(tokenizer.pretokenizer))


def read_gguf(
    tokens: Sequence[str], token_types: Sequence[int], merges: Sequence[str] | None, pre: str
) -> Tokenizer:
    """As Tokenizer.from_gguf. Padding entries (type 5, unused) get no text."""
    pretokenizer = pretokenizer_of_gguf(pre)
    if len(tokens) != len(token_types):
        raise TokenizerError(
            f"The GGUF vocabulary has {len(tokens)} tokens but {len(token_types)} token types.",
            "The file is damaged: download it again.",
        )
    ranks: dict[bytes, int] = {}
    special_tokens: dict[str, int] = {}
    visible = []
    for i, (token, kind) in enumerate(zip(tokens, token_types, strict=True)):
        if kind == _NORMAL:
            if ranks.setdefault(from_letters(token), i) != i:
                raise TokenizerError(f"Token {i} ({token!r}) of the GGUF vocabulary appears twice.", "")
        elif kind in (_CONTROL, _USER_DEFINED):
            if special_tokens.setdefault(token, i) != i:
                raise TokenizerError(f"Special token {token!r} of the GGUF vocabulary appears twice.", "")
            if kind == _USER_DEFINED:
                visible.append(token)
        elif kind != _UNUSED:
            raise TokenizerError(
                f"Token {i} of the GGUF vocabulary has type {kind}, which byte-level BPE does not use.",
                "Only vocabularies of model `gpt2` can be read.",
            )
    if merges is not None:
        prove_merges("the GGUF vocabulary", ranks, split_merges("the GGUF vocabulary", merges))
    return Tokenizer(
        ranks,
        special_tokens=special_tokens,
        visible=visible,
        pretokenizer=pretokenizer,
        nfc=pretokenizer is QWEN,
        name=f"gguf ({pre})",
    )


def split_merges(source: str, merges: Sequence[str]) -> Iterator[Pair]:
    """Merges written as "left right" in the byte alphabet, as pairs of bytes."""
    for number, merge in enumerate(merges):
        left, space, right = merge.partition(" ")
        if not space or not left or not right or " " in right:
            raise TokenizerError(
                f"{source}: merge {number} is {merge!r}, not two tokens.",
                "The file is damaged: download it again.",
            )
        yield from_letters(left), from_letters(right)
