"""Growing the vocabulary: learning new tokens from words (reference: tokenizer section 6).

The text half of the job. The rows that an embedding needs for the new ids, and what to start them from, are
the business of who holds the weights; `made_of` says which old tokens each new one replaces.
"""

from __future__ import annotations

import heapq
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from qwenkit.core import TokenizerError
from qwenkit.text.files import read_text
from qwenkit.text.normalize import to_nfc
from qwenkit.text.tokenizer import Tokenizer
from qwenkit.text.vocabulary import read_ranks, write_ranks


@dataclass(frozen=True)
class NewTokens:
    """What was learned: bytes -> id in the order of merging; and each word that gave nothing -> why."""

    tokens: dict[bytes, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the new tokens alone, in the rank file format, for use as `extra_vocab`."""
        if not self.tokens:
            raise TokenizerError("No new token was learned, so there is nothing to save.", "See `skipped`.")
        write_ranks(Path(path), self.tokens)


def read_words(path: Path) -> dict[str, int]:
    """Words and how often they occur, from UTF-8 lines `word<TAB>count` or `word` (counted once).

    Blank lines are skipped and repeated words added up. Raises TokenizerError, naming the line, for a
    count that is not a whole number above 0.
    """
    words: dict[str, int] = {}
    for number, line in enumerate(read_text(Path(path)).split("\n"), 1):
        word, tab, count = line.rstrip("\r").partition("\t")
        if not word.strip():
            continue
        if tab and not (count.strip().isdecimal() and int(count)):
            raise TokenizerError(
                f"{path}:{number}: the count of {word!r} is {count!r}.", "Write a whole number above 0."
            )
        word = to_nfc(word.strip())
        words[word] = words.get(word, 0) + (int(count) if tab else 1)
    return words


def learn_merges(tokenizer: Tokenizer, words: Mapping[str, int], *, start_id: int | None = None) -> NewTokens:
    """New tokens, so that each of `words` (word -> how often it occurs) becomes a single one.

    Pairs of neighbouring tokens are merged by frequency; ties by fewer characters, fewer bytes, then the
    text itself. Ids count up from `start_id`, by default the first free one. Skipped and reported are
    words that are tokens already and words that splitting cuts apart before any merging.

    Raises TokenizerError for a `start_id` below the first free id.
    """
    first = len(tokenizer) if start_id is None else start_id
    if first < len(tokenizer):
        raise TokenizerError(
            f"start_id={first} is in use: {tokenizer.name} has ids up to {len(tokenizer) - 1}.",
            f"Use {len(tokenizer)} or more.",
        )
    counts: dict[str, int] = defaultdict(int)
    for word, count in words.items():
        counts[to_nfc(word) if tokenizer.nfc else word] += count
    skipped = {word: "it is a token already" for word in counts if word.encode() in tokenizer.ranks}
    candidates = [word for word in counts if word and word not in skipped]
    for word in _cut_apart(tokenizer, candidates):
        skipped[word] = "the text is split inside it before merging"
    learner = _Learner()
    for word in candidates:
        if word not in skipped:
            learner.add([tokenizer.token_bytes(i) for i in tokenizer.encode(word)], counts[word])
    tokens = {token: first + i for i, token in enumerate(learner.run())}
    return NewTokens(tokens, skipped)


def made_of(tokenizer: Tokenizer, tokens: Mapping[bytes, int]) -> dict[int, list[int]]:
    """For each new id, the ids of the old `tokenizer` that its bytes were so far."""
    return {i: tokenizer.encode_piece(token) for token, i in tokens.items()}


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
        warnings.warn(f"{path}: left out {', '.join(skipped[:10])}{more}.", stacklevel=3)
    return added


def _cut_apart(tokenizer: Tokenizer, words: list[str]) -> list[str]:
    """Those of `words` that the splitting expression does not leave whole.

    A whole piece that is a token is looked up before any merging, so in a vocabulary that has every word,
    exactly the uncut ones come out as one token.
    """
    first = len(tokenizer) + 256
    ids = {word: first + i for i, word in enumerate(words)}
    every_byte = {bytes([b]): len(tokenizer) + b for b in range(256)}
    import tiktoken

    encoding = tiktoken.Encoding(
        "words",
        pat_str=tokenizer.pretokenizer.pattern,
        mergeable_ranks=every_byte | {word.encode(): i for word, i in ids.items()},
        special_tokens={},
    )
    return [word for word, i in ids.items() if encoding.encode_ordinary(word) != [i]]


class _Learner:
    """Byte-pair encoding learned from weighted words, given as lists of pieces."""

    def __init__(self) -> None:
        self._words: list[list[bytes]] = []
        self._weights: list[int] = []
        self._frequency: dict[tuple[bytes, bytes], int] = defaultdict(int)
        self._where: dict[tuple[bytes, bytes], set[int]] = defaultdict(set)
        # Best pair first. An entry is out of date when the frequency has changed since it was pushed.
        self._queue: list[tuple[int, int, int, str, bytes, tuple[bytes, bytes]]] = []

    def add(self, pieces: list[bytes], weight: int) -> None:
        self._words.append(pieces)
        self._weights.append(weight)
        self._count(len(self._words) - 1, +1)

    def run(self) -> list[bytes]:
        """Merge until every word is one piece; returns what was merged, in order."""
        learned: dict[bytes, None] = {}
        while self._queue:
            negative, *_, token, pair = heapq.heappop(self._queue)
            if -negative != self._frequency[pair] or not negative:
                continue
            learned[token] = None
            # Rank-BPE merges whatever two pieces make the token, so all of its splits go at once.
            splits = ((token[:i], token[i:]) for i in range(1, len(token)))
            for word in set().union(*(self._where.get(split, ()) for split in splits)):
                self._count(word, -1)
                self._words[word] = _merged(self._words[word], token)
                self._count(word, +1)
        return list(learned)

    def _count(self, word: int, sign: int) -> None:
        pieces = self._words[word]
        changed = set(pairwise(pieces))
        for pair in pairwise(pieces):
            self._frequency[pair] += sign * self._weights[word]
        for pair in changed:
            (self._where[pair].add if sign > 0 else self._where[pair].discard)(word)
            token = pair[0] + pair[1]
            text = token.decode("utf-8", "replace")
            heapq.heappush(self._queue, (-self._frequency[pair], len(text), len(token), text, token, pair))


def _merged(pieces: Iterable[bytes], token: bytes) -> list[bytes]:
    """`pieces` with every two neighbours that make `token` joined, from left to right."""
    result: list[bytes] = []
    for piece in pieces:
        if result and len(result[-1]) + len(piece) == len(token) and result[-1] + piece == token:
            # A joined token cannot join again: it has the token's length already.
            result[-1] = token
        else:
            result.append(piece)
    return result
