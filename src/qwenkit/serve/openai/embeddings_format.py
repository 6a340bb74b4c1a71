"""Vectors as a client of OpenAI's reads them."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Any


def embeddings_json(vectors: Sequence[bytes], *, as_base64: bool) -> list[dict[str, Any]]:
    """The `data` of OpenAI's response."""
    write = _base64 if as_base64 else _floats
    return [{"object": "embedding", "index": i, "embedding": write(v)} for i, v in enumerate(vectors)]


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()


def _floats(vector: bytes) -> list[float]:
    """Nine digits tell a float32 exactly."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return [float(f"{value:.9g}") for value in values]
