"""Which of a reply's tokens a stretch of its text is made of: those that have a byte of it."""

from __future__ import annotations

import codecs
from collections import deque

from qwenkit.core import Delta, TokenLogprob


class OwnTokens:
    """Of one reply, read along with it; without log probabilities there are none."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._waiting: deque[tuple[TokenLogprob, str, bool]] = deque()  # its characters; part of one more
        self._at = 0  # where the first of these begins

    def read(self, delta: Delta) -> None:
        """The next piece of the reply."""
        if delta.logprobs is None:
            return
        self._text += delta.text
        for token in delta.logprobs:
            piece = self._decoder.decode(token.token_bytes)
            self._waiting.append((token, piece, bool(self._decoder.getstate()[0])))

    def take(self, start: int, end: int) -> list[TokenLogprob]:
        """Those of the characters from `start` to `end`, which have been read. Later stretches come later."""
        own = []
        while self._waiting and self._at < end:
            token, piece, more = self._waiting.popleft()
            begin = self._at
            # The end of a token may have been cut off by a stop; a control token may be no text at all.
            if piece.startswith(self._text[begin : begin + len(piece)]):
                self._at += len(piece)
            if begin >= start or self._at + more > start:
                own.append(token)
        return own
