"""Rank files (`qwen.tiktoken`) and the two ways of writing a token's bytes.

A rank file has one token a line, `base64(bytes) rank`; the rank is id and merge priority at once
(reference: tokenizer section 1). Knows nothing about special tokens or text.
"""

from __future__ import annotations

import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path

from qwenkit.core import TokenizerError
from qwenkit.text.files import read_whole, write_whole

V1_REGULAR_TOKENS = 151_643
"""Ids 0 .. 151642 of every Qwen vocabulary so far are byte strings; special tokens start here."""

_PUBLISHED = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
"""SHA-256 of the one rank file that all models of 2023 share. What has it is not checked line by line."""

_AGAIN = "The file is damaged or not a rank file: download it again."


def v1_special_tokens() -> dict[str, int]:
    """The 208 special tokens of the 2023 models, surface form -> id (reference: tokenizer section 2)."""
    forms = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    return {form: V1_REGULAR_TOKENS + i for i, form in enumerate(forms)}


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes -> rank, in file order. Blank lines are skipped.

    Raises TokenizerError, naming file and line, for anything but unique tokens with unique ranks.
    """
    data = read_whole(path)
    if hashlib.sha256(data).hexdigest() == _PUBLISHED:
        return dict(zip(map(binascii.a2b_base64, data.split()[::2]), range(V1_REGULAR_TOKENS), strict=True))
    ranks: dict[bytes, int] = {}
    lines_of_ranks: dict[int, int] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            encoded, digits = fields
            token = binascii.a2b_base64(encoded)
            rank = int(digits)
        except ValueError as error:  # binascii.Error is one too
            raise TokenizerError(f"{path}:{number}: {line[:80]!r} is not `base64 rank`.", _AGAIN) from error
        # a2b_base64 skips what it does not know; writing the token back shows whether it did.
        if binascii.b2a_base64(token, newline=False) != encoded or not token or not digits.isdigit():
            raise TokenizerError(f"{path}:{number}: {line[:80]!r} is not `base64 rank`.", _AGAIN)
        if token in ranks:
            raise TokenizerError(f"{path}:{number}: token {token!r} appears twice.", _AGAIN)
        if rank in lines_of_ranks:
            raise TokenizerError(
                f"{path}:{number}: rank {rank} was already used on line {lines_of_ranks[rank]}.", _AGAIN
            )
        ranks[token] = rank
        lines_of_ranks[rank] = number
    if not ranks:
        raise TokenizerError(f"{path} holds no tokens.", _AGAIN)
    return ranks


def check_no_gap(path: Path, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]) -> None:
    """Raise TokenizerError unless ranks and special ids together are 0, 1, 2 ..., each once."""
    ids = sorted([*ranks.values(), *special_tokens.values()])
    if ids == list(range(len(ids))):
        return
    for expected, found in enumerate(ids):
        if found > expected:
            raise TokenizerError(
                f"{path}: no token has id {expected} (the next is {found}; {len(ranks)} ranks were read).",
                "The file is cut off or damaged: download it again. If it is a vocabulary of another model, "
                "pass the special tokens that belong to it.",
            )
        if found < expected:
            raise TokenizerError(
                f"{path}: id {found} belongs to two tokens, one of them special.",
                "Give added tokens ids above those of the special tokens.",
            )


def write_ranks(path: Path, ranks: Mapping[bytes, int]) -> None:
    """Write the rank file, sorted by rank; byte-identical to the original for its vocabulary."""
    lines = (
        binascii.b2a_base64(token, newline=False) + b" %d\n" % rank
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    )
    write_whole(path, b"".join(lines))


def _byte_letters() -> list[str]:
    """The printable letter for each byte, as GPT-2 chose them and every byte-level vocabulary since."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


BYTE_LETTERS = tuple(_byte_letters())
_LETTERS_OF_LATIN1 = dict(enumerate(BYTE_LETTERS))
# Latin-1 characters that are no letters of the alphabet go where encoding to Latin-1 must fail.
_LATIN1_OF_LETTERS = dict.fromkeys(range(256), 0xFFFF) | {
    ord(letter): byte for byte, letter in enumerate(BYTE_LETTERS)
}


def to_letters(token: bytes) -> str:
    """A token as byte-level vocabularies (tokenizer.json, GGUF) spell it."""
    return token.decode("latin-1").translate(_LETTERS_OF_LATIN1)


def from_letters(letters: str) -> bytes:
    """The inverse of `to_letters`; TokenizerError if a character is not of the byte alphabet."""
    try:
        return letters.translate(_LATIN1_OF_LETTERS).encode("latin-1")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"Token {letters!r} has {letters[error.start]!r}, which stands for no byte.",
            "Only byte-level BPE vocabularies (GPT-2 alphabet) can be read.",
        ) from error
