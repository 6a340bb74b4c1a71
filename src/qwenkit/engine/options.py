"""How an engine runs: its cache and its limits, chosen when a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch

from qwenkit.core.errors import RequestError
from qwenkit.engine.device import parse_dtype
from qwenkit.engine.draft_length import CostTable
from qwenkit.engine.draft_model import DraftModel
from qwenkit.engine.key_forms import key_forms
from qwenkit.engine.memory import free_memory
from qwenkit.engine.ngrams import NgramLookup
from qwenkit.engine.paged_cache import BLOCK_TOKENS, PagedCache, kv_token_bytes
from qwenkit.engine.speculate import Speculator
from qwenkit.engine.threads import uses_native_pool
from qwenkit.kernels.paged import FORMED, KV_FORMATS, KVFormat
from qwenkit.model import CausalLM, ModelConfig

USUAL_CACHE_BYTES = 2 << 30
"""What a cache takes by default, or one full context where that is more and half of the memory allows it."""

ROW_COST = {1: 1.0, 4: 1.2, 8: 1.35, 32: 2.1, 512: 20.0}
"""Time of a step of so many rows beside that of one row: 4-bit weights, AMX (docs/performance.md)."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Choices that hold for all requests of an engine. Raises RequestError for a value out of range.

    kv_cache: "auto" keeps keys and values in the dtype of the model; "int8" and "int8-affine" in 8 bits with
        a scale per token and head; "int4" in 4 bits with a scale for 32 channels; "int8-original" by the
        scheme of 2023. A dtype's name asks for that dtype and must be the model's.
    cache_tokens: tokens of all requests together that the cache holds; None chooses by memory.
    max_running: sequences computed together; more wait. max_waiting: requests that may wait.
    step_tokens: most tokens of one forward pass; bounds the memory of activations and how long a running
        reply waits for somebody else's prompt.
    attention_window: tokens each layer may look back, itself included, one number for all or one a layer;
        None: all. Not what the model was trained with: it trades quality for speed in long texts.
    block_tokens: grain at which the cache is given out and prompts share their beginnings.
    speculate: guess several tokens of a reply and check them in one pass, which changes speed and never the
        text. "ngram" guesses what followed the same words earlier in the text; "auto" does so where the
        kernels' results do not depend on how many rows they compute; "off". A draft model, if one is
        loaded, guesses instead of n-grams.
    """

    kv_cache: str = "auto"
    cache_tokens: int | None = None
    max_running: int = 32
    max_waiting: int = 1024
    step_tokens: int = 512
    attention_window: int | Sequence[int | None] | None = None
    block_tokens: int = BLOCK_TOKENS
    speculate: Literal["auto", "ngram", "off"] = "auto"

    def __post_init__(self) -> None:
        for name in ("cache_tokens", "max_running", "max_waiting", "step_tokens", "block_tokens"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise RequestError(f"{name}={value!r}.", "It must be a whole number of at least 1.")
        if self.speculate not in ("auto", "ngram", "off"):
            raise RequestError(f"Unknown speculate {self.speculate!r}.", "Choose auto, ngram or off.")
        self.kv_format(None)

    def kv_format(self, dtype: torch.dtype | None) -> KVFormat:
        """What kv_cache means for a model that computes in `dtype`."""
        if self.kv_cache in KV_FORMATS and self.kv_cache != "float":
            return self.kv_cache
        if self.kv_cache == "auto":
            return "float"
        choices = ", ".join(["auto", *KV_FORMATS[1:]])
        try:
            asked = parse_dtype(self.kv_cache)
        except RequestError as error:
            raise RequestError(f"Unknown kv_cache {self.kv_cache!r}.", f"Choose {choices}.") from error
        if dtype is not None and asked != dtype:
            raise RequestError(
                f"kv_cache={self.kv_cache!r}, but the model computes in {str(dtype).removeprefix('torch.')}.",
                f"Load with dtype={self.kv_cache!r} too, or choose {choices}.",
            )
        return "float"

    def windows(self, layers: int) -> list[int | None]:
        """The window of each of `layers` layers."""
        asked = self.attention_window
        each = [asked] * layers if asked is None or isinstance(asked, int) else list(asked)
        if len(each) != layers:
            raise RequestError(
                f"attention_window has {len(each)} entries.",
                f"Give one number, or one for each of {layers} layers.",
            )
        for window in each:
            if window is not None and window < 1:
                raise RequestError(
                    f"attention_window={window}.", "A token sees at least itself: 1 or more, or None."
                )
        return each


ENGINE_OPTIONS = tuple(field.name for field in fields(EngineOptions))


def make_cache(model: CausalLM, options: EngineOptions) -> PagedCache:
    """The cache for `model`, on its device. Raises RequestError for options that do not suit the model."""
    weight = model.transformer.wte.weight
    config = model.shape
    format = options.kv_format(weight.dtype)
    tokens = options.cache_tokens
    if tokens is None:
        tokens = usual_cache_tokens(config, kv_token_bytes(config, weight.dtype, format), weight.device)
        tokens = min(tokens, options.max_running * config.context_length)
    return PagedCache(
        config,
        -(-tokens // options.block_tokens),
        dtype=weight.dtype,
        format=format,
        device=weight.device,
        block_size=options.block_tokens,
        windows=options.windows(config.num_layers),
        key_forms=key_forms(model, format) if format in FORMED else None,
    )


def make_speculator(
    model: CausalLM,
    options: EngineOptions,
    cache: PagedCache,
    draft: CausalLM | None = None,
    vocabulary: int = 0,
) -> Speculator | None:
    """What guesses for `model`, or None: `draft` if there is one (ids below `vocabulary`), else n-grams.

    cache: that of `model`; the draft's holds as many tokens, for it reads the same texts.
    """
    if options.speculate == "off":
        return None
    cost = CostTable(ROW_COST)
    if draft is not None:
        same_texts = replace(options, attention_window=None, cache_tokens=cache.tokens)
        proposer = DraftModel(draft, make_cache(draft, same_texts), vocabulary)
        share = draft.shape.parameter_count / model.shape.parameter_count
        return Speculator(proposer, lambda rows: cost(rows) + share * (rows - 1))
    if options.speculate == "auto" and not uses_native_pool(model):
        return None
    return Speculator(NgramLookup(), cost)


def usual_cache_tokens(config: ModelConfig, token_bytes: int, device: torch.device) -> int:
    """Tokens of USUAL_CACHE_BYTES, or of one context if that is more, within half of the free memory."""
    wanted = max(USUAL_CACHE_BYTES, config.context_length * token_bytes)
    return max(1, min(wanted, free_memory(device) // 2) // token_bytes)
