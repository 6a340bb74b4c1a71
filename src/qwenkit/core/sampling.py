"""How the next token is chosen, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from qwenkit.core.errors import RequestError
from qwenkit.core.grammar import Grammar

_NO_BIAS: Mapping[int, float] = {}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Per-request choices. `None` means "what the checkpoint's generation_config.json says".

    temperature: > 0 divides the logits; 0 takes the most likely token.
    top_p: nucleus mass in (0, 1]; top_k: 0 keeps all; min_p: drop tokens below min_p x the best.
    repetition_penalty: > 0, divides positive and multiplies negative logits of every token seen in
        prompt or output (Keskar et al. 2019, arXiv:1909.05858); 1 is off.
    presence_penalty, frequency_penalty: in [-2, 2], subtracted from logits of generated tokens, once
        or per occurrence, as in the OpenAI API.
    max_tokens: most tokens to generate, >= 1.
    stop: strings that end the text; matched across token borders and never part of the result.
    stop_token_ids: ids that end the text, beside the checkpoint's own end-of-turn tokens.
    ignore_eos: do not stop at the checkpoint's own end tokens (benchmarks).
    seed: makes sampling repeatable; the result does not depend on what else is in the batch.
    n: independent continuations of one prompt.
    logprobs: None returns none; k >= 0 returns the chosen token's log probability and the k likeliest.
    logit_bias: token id -> value in [-100, 100] added to its logit.
    grammar: what the text must look like; tokens that would break it are never chosen.

    Raises RequestError for a value outside its range.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        stop: object = self.stop  # a bare string is what people write for one stop
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        _check("temperature", self.temperature, 0, 1e4)
        _check("top_p", self.top_p, 0, 1, open_low=True)
        _check("top_k", self.top_k, 0, 2**31, whole=True)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, 1e4, open_low=True)
        _check("presence_penalty", self.presence_penalty, -2, 2)
        _check("frequency_penalty", self.frequency_penalty, -2, 2)
        _check("max_tokens", self.max_tokens, 1, 2**31, whole=True)
        _check("seed", self.seed, -(2**63), 2**64 - 1, whole=True)
        _check("n", self.n, 1, 1024, whole=True)
        _check("logprobs", self.logprobs, 0, 1024, whole=True)
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError(f"stop contains {text!r}.", "Each stop must be a non-empty string.")
        for token in self.stop_token_ids:
            _check("stop_token_ids", token, 0, 2**31, whole=True)
        for token, bias in self.logit_bias.items():
            _check("logit_bias token id", token, 0, 2**31, whole=True)
            _check("logit_bias value", bias, -100, 100)
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise RequestError(
                f"grammar is {self.grammar!r:.60}.", "Give a Grammar, as Grammar.json_schema(...)."
            )

    def with_defaults(self, defaults: SamplingParams) -> SamplingParams:
        """Fill every None from `defaults`; what is set here wins."""
        missing = {f.name: getattr(defaults, f.name) for f in fields(self) if getattr(self, f.name) is None}
        return replace(self, **missing)

    @property
    def greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.temperature == 0 or self.top_k == 1


def _check(
    name: str, value: Any, low: float, high: float, *, whole: bool = False, open_low: bool = False
) -> None:
    if value is None:
        return
    kind = "a whole number" if whole else "a number"
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not right_type or math.isnan(value) or value > high or value < low or (open_low and value == low):
        raise RequestError(
            f"{name}={value!r} is out of range.",
            f"Give {kind} {'above' if open_low else 'from'} {low:g} to {high:g}.",
        )
