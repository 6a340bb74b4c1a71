"""What is asked of an engine: how many tokens, how deep, how many at once."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

SEED = 20231117


@dataclass(frozen=True)
class Point:
    """One measurement: `sequences` prompts of `prompt` tokens together, each continued by `new` tokens.

    The first new token comes with the prompt, so new - 1 steps are decoding.
    """

    kind: Literal["plain", "depth", "concurrency"]
    prompt: int
    new: int
    sequences: int = 1

    def prompts(self, vocabulary: int, turn: int = 0) -> list[list[int]]:
        """Random ids below `vocabulary`: the same for every engine, others in every turn and sequence.

        An engine that keeps what it has read must find nothing to use again.
        """
        draw = random.Random(f"{SEED} {self.prompt} {self.sequences} {turn}")
        return [[draw.randrange(vocabulary) for _ in range(self.prompt)] for _ in range(self.sequences)]


@dataclass(frozen=True)
class Workload:
    """prompt, decode: tokens read and tokens decoded after them; depths: decoding after longer prompts;
    concurrency: that many prompts at once; repeats: rounds over all engines.
    """

    prompt: int = 512
    decode: int = 64
    depths: tuple[int, ...] = ()
    concurrency: tuple[int, ...] = ()
    repeats: int = 3

    def points(self) -> list[Point]:
        new = self.decode + 1
        return [
            Point("plain", self.prompt, new),
            *(Point("depth", depth, new) for depth in self.depths),
            *(Point("concurrency", self.prompt, new, count) for count in self.concurrency if count > 1),
        ]

    @property
    def context(self) -> int:
        """Tokens of the longest sequence."""
        return max(point.prompt + point.new for point in self.points())

    @property
    def sequences(self) -> int:
        """Most sequences at once."""
        return max(point.sequences for point in self.points())

    @property
    def cache_tokens(self) -> int:
        """Most tokens whose keys and values are held at once."""
        return max((point.prompt + point.new) * point.sequences for point in self.points())
