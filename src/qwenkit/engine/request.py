"""One prompt and what is asked of it, checked before any work is done."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

from qwenkit.core.completion import Completion, Timings, Usage
from qwenkit.core.errors import ContextLengthError, RequestError
from qwenkit.core.sampling import SamplingParams
from qwenkit.engine.sequence import TokenSequence
from qwenkit.engine.vocabulary import Vocabulary
from qwenkit.model import ModelConfig, ntk_alpha

NEUTRAL = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0)
"""What acts where neither the request nor the checkpoint says anything: the model's own distribution."""


class Request:
    """An admitted prompt: `sequences` has one entry for each of `n`; all fit the model's context.

    ntk_alpha is that of the prompt's length and stays for the life of the request (reference: model
    section 4). Times are seconds of a monotonic clock.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        config: ModelConfig,
        vocabulary: Vocabulary,
        defaults: SamplingParams,
        end_ids: Collection[int] = (),
        name: str = "The prompt",
        dropped_turns: int = 0,
        cache_tokens: int | None = None,
    ) -> None:
        """Fill `params` from `defaults` and check everything; `name` is how errors speak of the prompt.

        cache_tokens: what the KV cache holds at most, where that is less than the model's context.
        Raises RequestError for an empty prompt, ids without text or a grammar that cannot be enforced,
        ContextLengthError when prompt and max_tokens exceed the context or the cache. A max_tokens that only
        the defaults ask for is lowered to what fits; one the caller asked for never is.
        """
        self.prompt_ids = tuple(prompt_ids)
        if not self.prompt_ids:
            raise RequestError(f"{name} is empty.", "Give at least one token to continue from.")
        vocabulary.check(self.prompt_ids, name)
        vocabulary.check(params.logit_bias, "logit_bias")
        vocabulary.check(params.stop_token_ids, "stop_token_ids")
        limit, what = config.context_length, "context of this model"
        if cache_tokens is not None and cache_tokens < limit:
            limit, what = cache_tokens, "KV cache (cache_tokens)"
        max_tokens = _room(len(self.prompt_ids), params.max_tokens, defaults.max_tokens, limit, what, name)
        resolved = replace(params, max_tokens=max_tokens).with_defaults(defaults)
        self.params = resolved.with_defaults(NEUTRAL)
        grammar = None if params.grammar is None else vocabulary.grammars.compile(params.grammar)
        self.ntk_alpha = ntk_alpha(len(self.prompt_ids), config.seq_length) if config.dynamic_ntk else 1.0
        self.max_tokens = max_tokens
        self.dropped_turns = dropped_turns
        self.cached_tokens = 0  # of the prompt, found in the cache
        self.sequences = [
            TokenSequence(
                self.prompt_ids, self.params, vocabulary.tokenizer, end_ids=end_ids, index=i, grammar=grammar
            )
            for i in range(self.params.n)
        ]
        self.arrived = time.monotonic()
        self.started: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None

    def completion(self) -> Completion:
        """What came of it, so far."""
        sampled = sum(sequence.sampled for sequence in self.sequences)
        usage = Usage(len(self.prompt_ids), sampled, self.cached_tokens)
        started = self.arrived if self.started is None else self.started
        first = started if self.first_token is None else self.first_token
        ended = first if self.ended is None else self.ended
        timings = Timings(started - self.arrived, first - started, ended - first)
        choices = tuple(sequence.choice() for sequence in self.sequences)
        return Completion(choices, usage, timings, self.dropped_turns)


def _room(prompt: int, asked: int | None, default: int | None, limit: int, what: str, name: str) -> int:
    """Tokens the reply may have, where `what` holds `limit` tokens."""
    left = limit - prompt
    if left < 1:
        raise ContextLengthError(
            f"{name} has {prompt} tokens; the {what} is {limit} tokens for prompt and reply.",
            f"Shorten it by at least {1 - left} tokens.",
        )
    if asked is not None and asked > left:
        raise ContextLengthError(
            f"{name} has {prompt} tokens and max_tokens is {asked}, {prompt + asked} together; "
            f"the {what} is {limit} tokens.",
            f"Ask for at most max_tokens={left}, or shorten the prompt by {asked - left} tokens.",
        )
    if asked is not None:
        return asked
    return left if default is None else min(default, left)
