"""Finding stop strings in text that arrives in pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qwenkit.core import RequestError


class StopMatcher:
    """Cuts a stream at the first stop string, wherever the borders of its pieces fall.

    The stop that starts first in the text wins; of several starting at the same place, the shortest. So
    the result is the text before `min(text.find(stop))`, however the text was split. Text is held back only
    while it may still be part of a stop: exactly the shortest tail that could.

    A stop that is complete while an earlier-starting one may still become so (stops "abcd" and "bc" after
    "abc") is decided by the next character, or by `finish`.

    Time is linear in the text for each stop, also for long and self-similar stops (Knuth, Morris and Pratt
    1977). Raises RequestError for stops that are not non-empty strings.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or any(not isinstance(stop, str) or not stop for stop in stops):
            raise RequestError(
                f"stop={stops!r} is not a list of strings.", "Each must be a non-empty string."
            )
        self._stops = tuple(dict.fromkeys(stops))
        self._failures = [_failure_table(stop) for stop in self._stops]
        self._matched_lengths = [0] * len(self._stops)  # longest prefix of each that the text ends in
        self._begins = (
            re.compile("|".join(sorted({re.escape(stop[0]) for stop in self._stops}))) if stops else None
        )
        self._held = ""
        self._found: tuple[int, str] | None = None  # (start in _held, stop) of the best complete match
        self.matched: str | None = None
        """The stop that ended the text, once one has."""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take the next piece; returns (text safe to show, the stop that was reached or None).

        After a stop was reached every further call returns ("", that stop).
        """
        if self.matched is not None:
            return "", self.matched
        if self._begins is None:
            return text, None
        text, position = self._held + text, len(self._held)
        while position < len(text):
            if self._found is None and not any(self._matched_lengths):
                candidate = self._begins.search(text, position)
                if candidate is None:
                    position = len(text)
                    break
                position = candidate.start()
            self._advance(text[position], position)
            position += 1
            if self._found and self._earliest(position) >= self._found[0]:
                return self._stop(text)
        safe = self._earliest(position)
        self._held = text[safe:]
        if self._found:  # positions are counted from the start of what is held
            self._found = (self._found[0] - safe, self._found[1])
        return text[:safe], None

    def finish(self) -> str:
        """The held-back text, now that no more comes; look at `matched` for a stop decided only here."""
        text, self._held = self._held, ""
        if self.matched is not None:
            return ""
        if self._found:
            return self._stop(text)[0]
        return text

    def _advance(self, char: str, position: int) -> None:
        for i, stop in enumerate(self._stops):
            length = self._matched_lengths[i]
            while length and (length == len(stop) or stop[length] != char):
                length = self._failures[i][length - 1]
            length += stop[length] == char
            self._matched_lengths[i] = length
            if length == len(stop):
                start = position + 1 - length
                if self._found is None or start < self._found[0]:
                    self._found = (start, stop)

    def _earliest(self, position: int) -> int:
        """Where the earliest match, complete or still possible, starts; `position` if there is none."""
        start = position - max(self._matched_lengths)
        return min(start, self._found[0]) if self._found else start

    def _stop(self, text: str) -> tuple[str, str]:
        assert self._found is not None
        start, self.matched = self._found
        self._held = ""
        return text[:start], self.matched


def _failure_table(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = table[length - 1]
        length += stop[i] == stop[length]
        table[i] = length
    return table
