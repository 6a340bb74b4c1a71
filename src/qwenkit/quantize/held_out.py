"""The texts that result and original are compared on: never those of the calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qwenkit.core import RequestError
from qwenkit.quantize.builtin_texts import held_out_texts
from qwenkit.quantize.calibration import text_windows
from qwenkit.quantize.source import Source

_WINDOWS = 2
_LENGTH = 1024
_LEAST = 256  # tokens in all, or the numbers mean nothing


def read_held_out(source: Source, files: Sequence[Path]) -> dict[str, list[tuple[int, ...]]]:
    """Name of each text -> windows of tokens: of the files, or of the built-in texts where there are none.

    Raises RequestError for a file that is not there, not UTF-8, or when all together are too short.
    """
    texts = {path.name: _read(path) for path in files} if files else held_out_texts()
    length = min(_LENGTH, source.config.context_length)
    windows = {
        name: [ids for ids in text_windows(text, source.tokenizer, _WINDOWS, length) if len(ids) > 1]
        for name, text in texts.items()
    }
    check_length(windows)
    return windows


def check_length(windows: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Raise RequestError if there is too little to measure on."""
    tokens = sum(len(ids) for texts in windows.values() for ids in texts)
    if tokens < _LEAST:
        raise RequestError(
            f"The texts to measure with have {tokens} tokens; at least {_LEAST} are needed.",
            "Name a longer file with --eval-text, or leave it out.",
        )


def _read(path: Path) -> str:
    if not path.is_file():
        raise RequestError(f"There is no text file {path}.", "Give --eval-text a plain text file.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 (byte {error.start}).", "Save it as UTF-8.") from error
