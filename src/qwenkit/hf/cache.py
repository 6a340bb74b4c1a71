"""transformers' caches as the model's KVCache, and the NTK factor that travels with them."""

from __future__ import annotations

from torch import Tensor
from transformers import Cache

from qwenkit.core import RequestError, UnsupportedError
from qwenkit.model import KVCache

_ALPHA = "qwen_ntk_alpha"


class TransformersCache(KVCache):
    """Adapter: the model appends through it, transformers reorders, crops and offloads behind it."""

    def __init__(self, cache: Cache) -> None:
        """Raises UnsupportedError for caches of fixed size, whose empty slots the model would attend to."""
        if not isinstance(cache, Cache):
            raise RequestError(
                f"past_key_values is a {type(cache).__name__}.", "Pass a transformers.DynamicCache."
            )
        if getattr(cache, "is_compileable", False):
            raise UnsupportedError(
                f"{type(cache).__name__} is a cache of fixed size.",
                "Leave cache_implementation out, or use 'dynamic', 'offloaded' or 'quantized'.",
            )
        self.cache = cache

    @property
    def length(self) -> int:
        return int(self.cache.get_seq_length())

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.cache.update(k, v, layer)
        return keys, values

    def nbytes(self) -> int:
        held: list[Tensor | None] = []
        for layer in self.cache.layers:
            held += [getattr(layer, "keys", None), getattr(layer, "values", None)]
        return sum(t.numel() * t.element_size() for t in held if t is not None)


def remember_alpha(cache: Cache, alpha: tuple[float, ...]) -> None:
    """Tie the NTK factors of a prompt, one a row or one for all, to the keys they rotated.

    They are an attribute of the cache and not of the model, so two conversations on one model object do
    not disturb each other, and copy.deepcopy of a prompt's cache takes them along.
    """
    setattr(cache, _ALPHA, alpha)


def recall_alpha(cache: Cache, rows: int, past: int, seq_length: int) -> tuple[float, ...]:
    """The factors a cache of `past` tokens was filled with, fit for `rows` rows.

    Raises RequestError when they cannot be known: the cache was filled elsewhere beyond the training
    length, or its rows were changed while they have different factors.
    """
    alpha: tuple[float, ...] | None = getattr(cache, _ALPHA, None)
    if alpha is None:
        if past <= seq_length:
            return (1.0,)  # whatever filled it was within the training length
        raise RequestError(
            f"The cache holds {past} tokens (training length {seq_length}) and no NTK factor.",
            "Fill it with this model, so that the factor of its prompt is known.",
        )
    if len(set(alpha)) == 1:
        return alpha[:1]
    if len(alpha) != rows:
        raise RequestError(
            f"The cache was filled with {len(alpha)} rows of different NTK factors and is used with {rows}.",
            "Run the prompt again with the rows you want.",
        )
    return alpha
