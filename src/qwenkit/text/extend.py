"""Growing the vocabulary: learning new tokens from words (reference: tokenizer section 6)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from qwenkit.text.vocabulary import read_ranks


def read_extra_vocab(
    path: Path, ranks: Mapping[bytes, int], special_tokens: Mapping[str, int]
) -> dict[bytes, int]:
    """The tokens of a second rank file that are new; one warning names those whose token or id is taken."""
    taken = {*ranks.values(), *special_tokens.values()}
    added: dict[bytes, int] = {}
    skipped = []
    for token, rank in read_ranks(path).items():
        if token in ranks:
            skipped.append(f"{token!r} (already token {ranks[token]})")
        elif rank in taken:
            skipped.append(f"{token!r} (id {rank} is taken)")
        else:
            added[token] = rank
    if skipped:
        more = f" and {len(skipped) - 10} more" if len(skipped) > 10 else ""
        warnings.warn(f"{path}: left out {', '.join(skipped[:10])}{more}.", stacklevel=2)
    return added
