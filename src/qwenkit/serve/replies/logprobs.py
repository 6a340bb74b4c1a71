"""Log probabilities in the shapes of OpenAI's two endpoints."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Sequence
from typing import Any

from qwenkit.core import TokenLogprob
from qwenkit.serve.engine.messages import PromptToken

_LEAST = -9999.0  # what stands for minus infinity, which JSON cannot say


def chat_logprobs(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """choices[].logprobs of a chat completion; `bytes` are exact where `token` is part of a character."""
    content = [
        {
            **_entry(token.token_bytes, token.logprob),
            "top_logprobs": [_entry(name, value) for _, name, value in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


class TextLogprobs:
    """choices[].logprobs of a text completion, piece by piece; offsets count characters of the text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def add(self, tokens: Sequence[TokenLogprob | PromptToken]) -> dict[str, Any]:
        """The four lists for the next tokens."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.token_bytes))
        return {
            "tokens": [_name(token.token_bytes) for token in tokens],
            "token_logprobs": [None if t.logprob is None else _finite(t.logprob) for t in tokens],
            "top_logprobs": [
                None if t.logprob is None else {_name(name): _finite(v) for _, name, v in t.top}
                for t in tokens
            ],
            "text_offset": offsets,
        }


def joined(parts: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Several results of `add` as one."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [value for part in parts for value in part[name]] for name in names}


def _entry(token: bytes, value: float) -> dict[str, Any]:
    return {"token": token.decode("utf-8", "replace"), "logprob": _finite(value), "bytes": list(token)}


def _name(token: bytes) -> str:
    """The token's text; of a part of a character, its bytes, so that no two names are alike."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _LEAST
