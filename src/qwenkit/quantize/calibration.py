"""Texts that show each layer what inputs it gets: token ids, from files of the user or built in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenkit.core import RequestError
from qwenkit.quantize.builtin_texts import calibration_passages
from qwenkit.quantize.passages import passage_samples
from qwenkit.quantize.settings import BUILTIN, Settings
from qwenkit.quantize.source import Source
from qwenkit.text import Tokenizer, chatml
from qwenkit.text.conversations import read_conversations

_CONVERSATIONS = (".json", ".jsonl")
_TEXTS = (".txt", ".md")
_CHARACTERS = 8  # a token has fewer, in any text but long runs of spaces


@dataclass(frozen=True)
class Calibration:
    """texts: token ids; source: where they are from, in words; offered: how many there were."""

    texts: tuple[tuple[int, ...], ...]
    source: str
    offered: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids."""
        return hashlib.sha256(repr(self.texts).encode()).hexdigest()


def read_calibration(origin: Source, settings: Settings) -> Calibration:
    """`settings.samples` texts, evenly spread over what is there, each cut to `settings.length` tokens.

    Conversations (.json, .jsonl) are laid out as in training, plain text is cut into windows; a folder may
    hold both. Raises RequestError for a path that is neither, a malformed record (file and line), and when
    all texts together have fewer tokens than the widest layer has inputs.
    """
    checkpoint, tokenizer = origin.checkpoint, origin.tokenizer
    if settings.calibration == BUILTIN:
        source = "built-in English, Chinese and code"
        found = passage_samples(
            calibration_passages(), checkpoint, tokenizer, settings.samples, settings.length
        )
    else:
        path = Path(settings.calibration)
        source = str(path)
        found = []
        for file in _files(path):
            if file.suffix.lower() in _CONVERSATIONS:
                found += _conversations(file, tokenizer, checkpoint.generation.default_system, settings)
            else:
                found += _windows(file, tokenizer, settings)
    chosen = spread([tuple(ids) for ids in found if ids], settings.samples)
    calibration = Calibration(tuple(chosen), source, len(found))
    widest = max(checkpoint.config.ffn_size, checkpoint.config.hidden_size)
    if calibration.tokens < widest:
        raise RequestError(
            f"The calibration ({source}) has {len(chosen)} texts with {calibration.tokens} tokens; "
            f"a layer of this model has {widest} inputs, and fewer tokens than that cannot tell them apart.",
            "Give more or longer texts, raise --samples or --length, or take --calibration builtin.",
        )
    return calibration


def spread(texts: list[tuple[int, ...]], count: int) -> list[tuple[int, ...]]:
    """`count` of them at even distances, all where there are no more."""
    if len(texts) <= count:
        return texts
    return [texts[i * len(texts) // count] for i in range(count)]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RequestError(f"There is no calibration file {path}.", f"Give a file, a folder or {BUILTIN!r}.")
    known = (*_CONVERSATIONS, *_TEXTS)
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in known and file.is_file())
    if not found:
        raise RequestError(f"{path} has no file named {', '.join('*' + k for k in known)}.", "Name one.")
    return found


def _conversations(
    path: Path, tokenizer: Tokenizer, default_system: str, settings: Settings
) -> list[tuple[int, ...]]:
    """As many as are needed, evenly spread; every record is checked, only these are encoded."""
    found = [messages for messages, _ in read_conversations(path)]
    count = min(len(found), settings.samples)
    return [
        tuple(
            chatml.encode_training(tokenizer, found[i * len(found) // count], default_system=default_system)[
                0
            ][: settings.length]
        )
        for i in range(count)
    ]


def _windows(path: Path, tokenizer: Tokenizer, settings: Settings) -> list[tuple[int, ...]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 (byte {error.start}).", "Save it as UTF-8.") from error
    return text_windows(text, tokenizer, settings.samples, settings.length)


def text_windows(text: str, tokenizer: Tokenizer, count: int, length: int) -> list[tuple[int, ...]]:
    """At most `count` windows of `length` tokens, at even distances; a shorter last one of a short text."""
    step = len(text) // count
    if step > length * _CHARACTERS:  # a long text: encode what is used, not all of it
        starts = (i * step for i in range(count))
        return [tuple(tokenizer.encode(text[at : at + length * _CHARACTERS])[:length]) for at in starts]
    ids: Sequence[int] = tokenizer.encode(text)
    return spread([tuple(ids[at : at + length]) for at in range(0, len(ids), length)], count)
