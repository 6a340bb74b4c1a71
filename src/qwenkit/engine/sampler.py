"""Choosing tokens: the rules and the random stream of each text, and all rows of a step in one call.

Order, that of the original and of transformers: logit bias, repetition penalty, presence and frequency
penalties, the grammar (what it forbids is at minus infinity from there on), temperature, top-k, top-p, min-p,
draw. (vLLM differs in one place: it applies min-p before top-k and top-p.) Log probabilities are those of the
untouched logits. What each rule means is defined in kernels/reference_sampling.py; a token depends on nothing
but its own row and text.

Knows nothing of stopping, and of text only its ids.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from torch import Tensor

from qwenkit.core.errors import QwenkitError
from qwenkit.core.sampling import SamplingParams
from qwenkit.engine.grammar import Matcher
from qwenkit.engine.penalties import Penalties
from qwenkit.engine.speculate import verify
from qwenkit.engine.vocabulary import Vocabulary
from qwenkit.kernels import Draw, choose_tokens, likely_tokens
from qwenkit.kernels.reference_sampling import Likely


@dataclass(frozen=True)
class Rows:
    """Where the logits of one text stand: what follows after i of its drafts is row first + i."""

    first: int
    drafts: Sequence[int] = ()

    @property
    def count(self) -> int:
        return len(self.drafts) + 1


class Sampler:
    """The state of choosing for one text: its random stream and the tokens that penalties count.

    params must have no None left among the fields used here (see SamplingParams.with_defaults). The
    random numbers are Philox4x64 keyed by (seed, choice), one for each token that is not simply the best:
    they depend on nothing but the request. A seed of None draws one from the operating system.
    matcher: says which ids its grammar lets through; whoever appends tokens to the text tells it.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: tuple[int, ...],
        choice: int = 0,
        matcher: Matcher | None = None,
    ) -> None:
        self.params = params
        self.temperature = _resolved("temperature", params.temperature)
        self.top_p = _resolved("top_p", params.top_p)
        self.top_k = int(_resolved("top_k", params.top_k))
        self.min_p = _resolved("min_p", params.min_p)
        self._penalties = Penalties(params, prompt_ids)
        self._matcher = matcher
        seed = secrets.randbits(64) if params.seed is None else params.seed % 2**64
        key = np.array([seed, choice], dtype=np.uint64)
        self._random = np.random.Generator(np.random.Philox(key=key))
        self._ahead: deque[float] = deque()  # numbers drawn for guesses that turned out wrong

    def choose(self, logits: Tensor) -> int:
        """The next token of one row [vocab], minus infinity where an id is none; it is counted as emitted."""
        (run,) = choose([(self, Rows(0))], logits[None])
        if isinstance(run, QwenkitError):
            raise run
        return run[0]

    def draws(self, logits: Tensor, rows: Rows) -> list[Draw]:
        """What decides the token after 0, 1, ... drafts; logits [b, vocab]."""
        draws = []
        allowed = [None] * rows.count if self._matcher is None else self._matcher.allowed(rows.drafts)
        for i in range(rows.count):
            row = rows.first + i
            edits = self._penalties.edits(logits[row])
            if self.params.greedy:
                draws.append(Draw(row, edits=edits, allowed=allowed[i]))
            else:
                if i == len(self._ahead):
                    self._ahead.append(float(self._random.random()))
                rules = self.temperature, self.top_k, self.top_p, self.min_p
                draws.append(Draw(row, *rules, self._ahead[i], edits, allowed[i]))
            if i < len(rows.drafts):
                self._penalties.add(rows.drafts[i])
        for token in reversed(rows.drafts):
            self._penalties.undo(token)
        return draws

    @property
    def error(self) -> QwenkitError | None:
        """Why no token can be chosen any more: the grammar was given up."""
        return None if self._matcher is None else self._matcher.error

    def emit(self, tokens: Sequence[int]) -> None:
        """These were drawn: count them, and move on in the random stream."""
        for token in tokens:
            self._penalties.add(token)
            if not self.params.greedy:
                self._ahead.popleft()


def choose(
    turns: Sequence[tuple[Sampler, Rows]], logits: Tensor, vocabulary: Vocabulary | None = None
) -> list[list[int] | QwenkitError]:
    """The new tokens of each text: the drafts that are right, and one token more (speculate.verify).

    logits: [b, rows] of any float dtype. vocabulary: which of the rows are tokens; without it all are but
    those at minus infinity. All tokens are chosen in one call, and each is the one its text would get
    alone. They are counted as emitted. A text with NaN or infinite logits, or whose grammar was given up,
    gets an error instead.
    """
    draws = [draw for sampler, rows in turns for draw in sampler.draws(logits, rows)]
    chosen = choose_tokens(logits, draws, **_tokens_of(vocabulary))
    tokens = iter(chosen.tokens)
    results: list[list[int] | QwenkitError] = []
    for sampler, rows in turns:
        said = [next(tokens) for _ in range(rows.count)]
        run = verify(rows.drafts, said.__getitem__)
        if sampler.error is not None:
            results.append(sampler.error)
        elif run[-1] < 0:
            total = logits.shape[1] if vocabulary is None else vocabulary.size
            results.append(_not_finite(chosen.bad[rows.first + len(run) - 1], total))
        else:
            sampler.emit(run)
            results.append(run)
    return results


def log_probabilities(
    logits: Tensor, wanted: Sequence[tuple[int, int, int]], vocabulary: Vocabulary | None = None
) -> list[Likely]:
    """For each (row, token, how many): natural-log probability of the token, and the likeliest, best first.

    logits and vocabulary as for `choose`; ids that are no tokens are not listed.
    """
    return likely_tokens(logits, wanted, **_tokens_of(vocabulary)) if wanted else []


class _Tokens(TypedDict, total=False):
    size: int
    holes: Tensor


def _tokens_of(vocabulary: Vocabulary | None) -> _Tokens:
    return {} if vocabulary is None else {"size": vocabulary.size, "holes": vocabulary.hole_ids}


def _not_finite(count: int, total: int) -> QwenkitError:
    return QwenkitError(
        f"The model produced {count} NaN or infinite logits of {total}.",
        "Try dtype='bfloat16' or 'float32' (float16 overflows on some models); "
        "if it persists the checkpoint is damaged.",
    )


def _resolved(name: str, value: float | None) -> float:
    if value is None:
        raise TypeError(f"Sampler needs resolved parameters: {name} is None; apply with_defaults first.")
    return value
