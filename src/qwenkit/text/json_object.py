"""Where a JSON object ends, in text that arrives in pieces."""

from __future__ import annotations

import re

_STRUCTURE = re.compile(r'[{}\[\]"]')
_STRING = re.compile(r'["\\]')


class ObjectEnd:
    """Finds the bracket that closes the first one of the text. Counts brackets outside of strings; that the
    text is JSON is others' business."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """Take the next piece, which begins with `{` if it is the first; where the object ends in it (behind
        its last character), None if it goes on."""
        at = 0
        if self._escaped and text:
            at, self._escaped = 1, False
        while found := (_STRING if self._in_string else _STRUCTURE).search(text, at):
            at = found.end()
            letter = found.group()
            if letter == '"':
                self._in_string = not self._in_string
            elif letter == "\\":
                self._escaped = at == len(text)
                at += 1
            elif letter in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    return at
        return None
