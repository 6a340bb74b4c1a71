"""Text as the vocabulary was trained on it: valid Unicode in normal form C, in bounded time."""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby

_LONG_MARKS = 256
# Combining marks are neither word characters nor space; so are symbols, which the second look tells apart.
_SYMBOL_RUNS = re.compile(rf"(?<![^\w\s])[^\w\s]{{{_LONG_MARKS},}}")


def replace_surrogates(text: str) -> str:
    """Join surrogate pairs and turn lone surrogates, which have no UTF-8 form, into U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def to_nfc(text: str) -> str:
    """Unicode normal form C, in time linear but for a sort.

    Python orders combining marks by insertion, quadratic for runs of them ("zalgo" text of 100,000 marks
    takes a minute), so long runs are put into canonical order before.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _SYMBOL_RUNS.sub(_order_marks, text))


def _order_marks(run: re.Match[str]) -> str:
    parts: list[str] = []
    for are_marks, chars in groupby(run.group(), key=_is_mark):
        if are_marks:
            decomposed = "".join(unicodedata.normalize("NFD", char) for char in chars)
            parts.extend(sorted(decomposed, key=unicodedata.combining))
        else:
            parts.extend(chars)
    return "".join(parts)


def _is_mark(char: str) -> bool:
    return unicodedata.combining(unicodedata.normalize("NFD", char)[0]) != 0
