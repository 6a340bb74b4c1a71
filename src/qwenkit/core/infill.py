"""A text with a gap, to be filled in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Infill:
    """What comes before the gap, as text or token ids, and what comes after it."""

    prefix: str | tuple[int, ...]
    suffix: str
