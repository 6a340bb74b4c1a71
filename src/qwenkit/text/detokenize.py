"""Token ids to text while they are still coming."""

from __future__ import annotations

import codecs

from qwenkit.text.tokenizer import Tokenizer


class StreamDecoder:
    """Turns ids into text one at a time, giving out whole characters only.

    All that `push` and the final `finish` return, joined, equals `tokenizer.decode(ids,
    skip_special=..., errors="replace")`. Bytes that may still become a character are held back, so U+FFFD
    appears only where the bytes can no longer be valid.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """New text now certain, "" if the token only begins a character. TokenizerError as `token_bytes`."""
        if self._skip_special and self._tokenizer.is_skipped(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: U+FFFD if the last character never became whole, else ""."""
        return self._decoder.decode(b"", final=True)
