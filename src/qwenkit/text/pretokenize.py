"""How text is cut into the pieces that byte-pair merging works on.

The regular expression does it (inside tiktoken); this module knows the expressions and one thing the
engine cannot do: runs of a million whitespace characters overflow its backtracking stack, so long runs
are cut here, exactly where the expression would cut them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from qwenkit.core import TokenizerError

LONG_RUN = 4096
"""Whitespace runs of this many characters are cut here instead of by the regular expression."""

# White_Space of Unicode as the Rust engine has it; Python's own \s also takes U+001C .. U+001F.
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_NEWLINES = "\r\n"


@dataclass(frozen=True)
class Pretokenizer:
    r"""A splitting expression, and what of it matters for a long whitespace run.

    newline_pieces: the expression has `[^\s\p{L}\p{N}]+[\r\n]*` and `\s*[\r\n]+`: newlines join the
        symbols before them, and a run is a piece up to its last newline.
    joins_numbers: whitespace before a number stays whole (`\s+(?![^\s\p{N}])`), where otherwise the
        last character of a run stays with what follows (`\s+(?!\S)`).
    known: False for an expression nobody has analysed; a long run then is an error.
    """

    pattern: str
    newline_pieces: bool = True
    joins_numbers: bool = False
    known: bool = True

    def divide(self, text: str, long_run: int = LONG_RUN) -> Iterator[tuple[str, bool]]:
        """Cut `text` at its long whitespace runs into (part, whole).

        whole is True for a part that is one piece of the expression, False for text still to be split by
        it; splitting the parts one by one gives the pieces of the whole text.
        """
        start = 0
        for match in _long_runs(long_run).finditer(text):
            if not self.known:
                raise TokenizerError(
                    f"The text has {match.end() - match.start()} whitespace characters in a row; with this "
                    f"vocabulary's own splitting expression at most {long_run - 1} are possible.",
                    "Shorten the run.",
                )
            cut, end = match.span()
            if self.newline_pieces and cut > start and _is_symbol(text[cut - 1]):
                while cut < end and text[cut] in _NEWLINES:
                    cut += 1
            if cut == end:
                continue
            if cut > start:
                yield text[start:cut], False
            if self.newline_pieces:
                last = max(text.rfind(newline, cut, end) for newline in _NEWLINES)
                if last >= cut:
                    yield text[cut : last + 1], True
                    cut = last + 1
            keeps_all = end == len(text) or (self.joins_numbers and _is_number(text[end]))
            blanks = end if keeps_all else end - 1
            if cut < blanks:
                yield text[cut:blanks], True
                cut = blanks
            start = cut
        if start < len(text):
            yield text[start:], False


def _long_runs(length: int) -> re.Pattern[str]:
    # The look-behind keeps the search linear: without it every position of a shorter run is a new start.
    return re.compile(f"(?<![{_SPACE}])[{_SPACE}]{{{length},}}")


def _is_symbol(char: str) -> bool:
    return unicodedata.category(char)[0] not in "LN"


def _is_number(char: str) -> bool:
    return unicodedata.category(char)[0] == "N"


QWEN = Pretokenizer(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""All Qwen models to date (reference: tokenizer section 3)."""

SMOLLM = Pretokenizer(
    r"'s|'t|'re|'ve|'m|'ll|'d|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
    newline_pieces=False,
    joins_numbers=True,
)
"""SmolLM2: GPT-2's expression with each digit on its own."""

_BY_GGUF_NAME = {"qwen2": QWEN, "deepseek-r1-qwen": QWEN, "smollm": SMOLLM}


def pretokenizer_of_gguf(name: str) -> Pretokenizer:
    """The expression behind GGUF's `tokenizer.ggml.pre`; TokenizerError listing the known names."""
    if name not in _BY_GGUF_NAME:
        raise TokenizerError(
            f"Pre-tokenizer {name!r} is not known.", f"Known are {', '.join(sorted(_BY_GGUF_NAME))}."
        )
    return _BY_GGUF_NAME[name]


def gguf_name(pretokenizer: Pretokenizer) -> str:
    """GGUF's name of a known expression; TokenizerError for others."""
    for name, known in _BY_GGUF_NAME.items():
        if known == pretokenizer:
            return name
    raise TokenizerError(
        f"GGUF has no name for splitting text by {pretokenizer.pattern!r}.", "Keep the folder."
    )


def pretokenizer_of_pattern(pattern: str) -> Pretokenizer:
    """The analysed entry for a known expression, else one that refuses long whitespace runs."""
    for known in _BY_GGUF_NAME.values():
        if known.pattern == pattern:
            return known
    return Pretokenizer(pattern, known=False)
