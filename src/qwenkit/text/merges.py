"""Merge lists and ranks: two ways of writing one byte-pair encoding, if they agree.

Rank-BPE (tiktoken, the rank files) merges the adjacent pair whose concatenation has the lowest id. List-BPE
(tokenizer.json, merges.txt, GGUF) merges the pair that stands first in a list. They give the same tokens for
every text exactly when, for each token, the list holds the pair in which merging all lower-ranked tokens
leaves it, and the list is in the order of ids. Then no other split of a token ever meets, because what
happens inside a token's bytes before it forms does not depend on what is around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qwenkit.core import TokenizerError

Pair = tuple[bytes, bytes]

_REMEDY = "This vocabulary cannot be read exactly; use the checkpoint's original tokenizer files."


def prove_merges(source: str, ranks: Mapping[bytes, int], merges: Iterable[Pair]) -> None:
    """Raise TokenizerError, naming `source` and the merge, unless `merges` and `ranks` always agree."""
    halves: dict[bytes, Pair] = {}
    last = -1
    for number, (left, right) in enumerate(merges):
        token = left + right
        rank = ranks.get(token)
        if rank is None:
            raise TokenizerError(f"{source}: merge {number} makes {token!r}, which is no token.", _REMEDY)
        if rank < last:
            raise TokenizerError(
                f"{source}: merge {number} makes id {rank} after id {last}; merges are not in order of ids.",
                _REMEDY,
            )
        for half in (left, right):
            if half not in halves and not (len(half) == 1 and half in ranks):
                raise TokenizerError(
                    f"{source}: merge {number} uses {half!r}, which no merge made before.", _REMEDY
                )
        last = rank
        if token not in halves and _stays_apart(left, right, ranks, halves):
            halves[token] = (left, right)
    for token, rank in ranks.items():
        if len(token) > 1 and token not in halves:
            raise TokenizerError(
                f"{source}: no merge makes token {rank} ({token!r}) the way merging by id does.", _REMEDY
            )


def reconstruct_merges(ranks: Mapping[bytes, int]) -> list[Pair]:
    """The merge list implied by `ranks`, in order of ids: one pair for each token of several bytes.

    Raises TokenizerError for a token that merging never arrives at, which no merge list could express.
    """
    halves: dict[bytes, Pair] = {}
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            known = (len(left) == 1 or left in halves) and (len(right) == 1 or right in halves)
            if known and _stays_apart(left, right, ranks, halves):
                halves[token] = (left, right)
                break
        else:
            raise TokenizerError(
                f"Token {rank} ({token!r}) is not made of two tokens of lower rank.",
                "It cannot be written as a merge list; keep the rank file.",
            )
    return list(halves.values())


def _stays_apart(left: bytes, right: bytes, ranks: Mapping[bytes, int], halves: Mapping[bytes, Pair]) -> bool:
    """Whether merging the bytes of left + right, short of the whole, leaves exactly these two.

    Walks back in time from both: at each moment only the rightmost part of `left` and the leftmost part of
    `right` touch, and a token made of the two would have merged if its turn came while both were there.
    Tokens of equal rank merge from left to right.
    """
    a, b = left, right
    a_ends = b_ends = ranks[left + right]  # the rank at whose turn a and b are merged into something else
    while True:
        crossing = ranks.get(a + b)
        if crossing is not None and crossing < a_ends and crossing <= b_ends and (a, b) != (left, right):
            return False
        a_begins = ranks[a] if len(a) > 1 else -1
        b_begins = ranks[b] if len(b) > 1 else -1
        if a_begins > b_begins:
            a_ends, a = a_begins, halves[a][1]
        elif b_begins >= 0:
            b_ends, b = b_begins, halves[b][0]
        else:
            return True
