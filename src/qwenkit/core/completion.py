"""What comes back from a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from qwenkit.core.messages import ToolCall

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "abort"]


@dataclass(frozen=True)
class TokenLogprob:
    """Natural-log probability of one token, before temperature and truncation are applied.

    `top` holds the likeliest alternatives as (token id, its bytes, log probability), best first.
    """

    token_id: int
    token_bytes: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Token counts: the prompt once, completions summed over all choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds: waiting, until the prompt was read, and generating all further tokens."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.queue_s + self.prefill_s


@dataclass(frozen=True)
class Choice:
    """One continuation. `stop_reason` is the stop string or token id that ended it, if any.

    tool_calls: what the assistant asks for, where it was given tools; `text` is what it says besides.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Completion:
    """The result of one prompt; `choices` has one entry for each of `n`.

    `dropped_turns` counts history turns left out to fit `max_window_size` (0 unless chatting).
    """

    choices: tuple[Choice, ...]
    usage: Usage
    timings: Timings = field(default_factory=Timings)
    dropped_turns: int = 0

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.choices[0].tool_calls


@dataclass(frozen=True)
class Delta:
    """A piece of a stream: new text of choice `index`; `str(delta)` is that text.

    The last delta of a choice has a `finish_reason`; the last of the stream also the whole `completion`.
    end_logprob: of the token that ended the choice and is no part of it, if log probabilities were asked for.
    """

    text: str
    index: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    completion: Completion | None = None
    end_logprob: TokenLogprob | None = None

    def __str__(self) -> str:
        return self.text
