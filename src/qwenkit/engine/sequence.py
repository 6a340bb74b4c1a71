"""One text being generated: everything that depends on its own tokens and on nothing else.

Holds the sampler, the streaming decoder, the stop rules and the log probabilities. Knows nothing of
caches or devices: whoever runs the model hands it rows of logits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from qwenkit.core.completion import Choice, Delta, FinishReason, TokenLogprob
from qwenkit.core.errors import QwenkitError
from qwenkit.core.sampling import SamplingParams
from qwenkit.engine.grammar import CompiledGrammar
from qwenkit.engine.sampler import Rows, Sampler, choose, log_probabilities
from qwenkit.engine.vocabulary import Vocabulary
from qwenkit.kernels.reference_sampling import Likely
from qwenkit.text import StopMatcher, StreamDecoder, Tokenizer


class TokenSequence:
    """A continuation of `prompt_ids`, choice `index` of its request.

    params: fully resolved (max_tokens included). end_ids: the checkpoint's own end tokens, to which
    params.stop_token_ids are added and which params.ignore_eos turns off. grammar: what the text must follow;
    it ends where nothing may follow.

    A token leaves in a delta once its text may be seen, so what a stop string swallowed is never
    delivered. `text` and `token_ids` are at any time the concatenation of the deltas so far; with a stop
    string, tokens that spell nothing but the stop are not in them, and a stop token never is.
    `sampled` counts every token drawn, those too.
    """

    def __init__(
        self,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        tokenizer: Tokenizer,
        *,
        end_ids: Collection[int] = (),
        index: int = 0,
        grammar: CompiledGrammar | None = None,
    ) -> None:
        if params.max_tokens is None:
            raise TypeError("TokenSequence needs resolved parameters: max_tokens is None.")
        self.prompt_ids = prompt_ids
        self.params = params
        self.index = index
        self.sampled = 0
        self.last_token = prompt_ids[-1]
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self._max_tokens = params.max_tokens
        self._end_ids = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else end_ids)
        self.matcher = None if grammar is None else grammar.matcher(self._end_ids)
        self.sampler = Sampler(params, prompt_ids, index, self.matcher)
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, skip_special=True)
        self._stops = StopMatcher(params.stop)
        self._decoded = 0  # characters the decoder gave
        self._held: list[tuple[int, int, TokenLogprob | None]] = []  # token, where its text begins, ...
        self._emitted = 0  # characters delivered
        self._texts: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(self._tokens)

    def advance(self, logits: Tensor) -> Delta | None:
        """Choose the next token from its row of logits [vocab]; see `accept` for what returns.

        Minus infinity marks ids that are no tokens. Raises QwenkitError for NaN or infinite logits.
        """
        (done,) = advance([(self, Rows(0))], logits[None])
        if isinstance(done, QwenkitError):
            raise done
        return done.deltas[0] if done.deltas else None

    def accept(self, token: int, logprob: TokenLogprob | None = None) -> Delta | None:
        """Append a token chosen elsewhere. Returns text that may now be seen, if any, and always the end."""
        if self.finished:
            raise RuntimeError("The sequence has finished.")
        self.sampled += 1
        self.last_token = token
        if token in self._end_ids:
            last = self._finish("stop", token)
            return last if last.stop_reason != token else replace(last, end_logprob=logprob)
        if self.matcher is not None:
            self.matcher.accept(token)
        self._held.append((token, self._decoded, logprob))
        text = self._decoder.push(token)
        self._decoded += len(text)
        safe, stop = self._stops.push(text)
        if stop is not None:
            return self._end(safe, "stop", stop, keep_held=False)
        if self.matcher is not None and self.matcher.finished:
            return self._finish("stop", None, safe)
        if self.sampled >= self._max_tokens:
            return self._finish("length", None, safe)
        return self._deliver(safe) if safe else None

    def choice(self) -> Choice:
        """The result so far; a sequence still running counts as aborted."""
        return Choice(
            text=self.text,
            token_ids=self.token_ids,
            finish_reason=self.finish_reason or "abort",
            stop_reason=self.stop_reason,
            logprobs=None if self.params.logprobs is None else tuple(self._logprobs),
        )

    def _finish(self, reason: FinishReason, stop: int | None, safe: str = "") -> Delta:
        """Release what decoder and matcher held; the tail may yet complete a stop string."""
        tail, _ = self._stops.push(self._decoder.finish())
        text = safe + tail + self._stops.finish()
        if self._stops.matched is not None:
            return self._end(text, "stop", self._stops.matched, keep_held=False)
        return self._end(text, reason, stop, keep_held=True)

    def _end(self, text: str, reason: FinishReason, stop: str | int | None, *, keep_held: bool) -> Delta:
        self.finish_reason, self.stop_reason = reason, stop
        return self._deliver(text, everything=keep_held)

    def named(self, token: int, likely: Likely) -> TokenLogprob:
        """Log probabilities with the bytes of their tokens."""
        value, best = likely
        name = self._tokenizer.token_bytes
        return TokenLogprob(token, name(token), value, tuple((i, name(i), v) for i, v in best))

    def _deliver(self, text: str, *, everything: bool = False) -> Delta:
        """Deliver `text` with the held tokens that begin before its end, or with all of them."""
        self._emitted += len(text)
        ready = len(self._held)
        if not everything:
            ready = sum(begin < self._emitted for _, begin, _ in self._held)  # begins never decrease
        now, self._held = self._held[:ready], self._held[ready:]
        tokens = tuple(token for token, _, _ in now)
        logprobs = tuple(logprob for _, _, logprob in now if logprob is not None)
        self._texts.append(text)
        self._tokens.extend(tokens)
        self._logprobs.extend(logprobs)
        return Delta(
            text=text,
            index=self.index,
            token_ids=tokens,
            logprobs=None if self.params.logprobs is None else logprobs,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


@dataclass(frozen=True)
class Advance:
    """What a step gave one sequence: its new tokens, and what of the text may now be seen."""

    tokens: list[int]
    deltas: list[Delta]


def advance(
    turns: Sequence[tuple[TokenSequence, Rows]], logits: Tensor, vocabulary: Vocabulary | None = None
) -> list[Advance | QwenkitError]:
    """Choose for all sequences at once, as sampler.choose does, and append what was chosen.

    A sequence that ends in the middle of its drafts takes no more of them.
    """
    chosen = choose([(sequence.sampler, rows) for sequence, rows in turns], logits, vocabulary)
    runs = [() if isinstance(run, QwenkitError) else run for run in chosen]
    wanted = [
        (rows.first + i, token, sequence.params.logprobs)
        for (sequence, rows), run in zip(turns, runs, strict=True)
        for i, token in enumerate(run)
        if sequence.params.logprobs is not None
    ]
    likely = iter(log_probabilities(logits, wanted, vocabulary))
    results: list[Advance | QwenkitError] = []
    for (sequence, _), run in zip(turns, chosen, strict=True):
        if isinstance(run, QwenkitError):
            results.append(run)
            continue
        logged = sequence.params.logprobs is not None
        logprobs = [sequence.named(token, next(likely)) if logged else None for token in run]
        done = Advance([], [])
        for token, logprob in zip(run, logprobs, strict=True):
            delta = sequence.accept(token, logprob)
            done.tokens.append(token)
            if delta is not None:
                done.deltas.append(delta)
            if sequence.finished:
                break
        results.append(done)
    return results
