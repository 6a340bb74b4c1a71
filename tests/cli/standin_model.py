"""A model and a checkpoint that say what they are told to say, and remember what they were asked.

Run as a program it is the command line with this model: what a subprocess test needs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qwenkit.core import (
    Choice,
    Completion,
    Delta,
    FinishReason,
    GenerationConfig,
    SamplingParams,
    Timings,
    TokenLogprob,
    Usage,
)

Reply = Sequence[str | BaseException]


class StandIn:
    """Each reply is a list of pieces; an exception among them is raised at that point."""

    name = "stand-in"
    is_chat = True

    def __init__(
        self,
        *replies: Reply,
        tokenizer: Any = None,
        notice: str | None = None,
        finish: FinishReason = "stop",
        dropped: int = 0,
        generation: GenerationConfig | None = None,
    ) -> None:
        from qwenkit.model import SIZES

        self.config = SIZES["qwen-1.8b"]
        self.generation = generation or GenerationConfig(max_window_size=6144)
        self.tokenizer = tokenizer
        self.notice = notice
        self.asked: list[dict[str, Any]] = []
        self.loaded_with: dict[str, Any] = {}
        self._replies = list(replies) or [["Hello", " world."]]
        self._finish = finish
        self._dropped = dropped

    def load(self, model: str | None, **options: Any) -> StandIn:
        self.loaded_with = {"model": model, **options}
        return self

    def _next(self) -> Reply:
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    def _completion(self, text: str, tokens: int, choices: int = 1) -> Completion:
        logprobs = (TokenLogprob(5, b"\xe4\xbd", -0.5, ((5, b"\xe4\xbd", -0.5),)),)
        choice = Choice(text, tuple(range(tokens)), self._finish, logprobs=logprobs)
        return Completion(
            (choice,) * choices, Usage(11, tokens), Timings(prefill_s=0.5, decode_s=0.25), self._dropped
        )

    def _stream(self) -> Iterator[Delta]:
        text, count = "", 0
        for piece in self._next():
            if isinstance(piece, BaseException):
                raise piece
            text, count = text + piece, count + 1
            yield Delta(piece)
        yield Delta("", finish_reason=self._finish, completion=self._completion(text, count))

    def chat_stream(
        self,
        query: str,
        history: Sequence[tuple[str, str]] | None = None,
        system: str | None = None,
        *,
        max_window_size: int | None = None,
        params: SamplingParams | None = None,
    ) -> Iterator[Delta]:
        self.asked.append(
            {
                "query": query,
                "history": list(history or ()),
                "system": system,
                "window": max_window_size,
                "params": params,
            }
        )
        return self._stream()

    def generate(
        self, prompt: str, params: SamplingParams | None = None, *, parse_special: bool = False
    ) -> Completion:
        params = params or SamplingParams()
        self.asked.append({"prompt": prompt, "params": params, "parse_special": parse_special})
        pieces = [piece for piece in self._next() if isinstance(piece, str)]
        return self._completion("".join(pieces), len(pieces), params.n)

    def generate_stream(
        self, prompt: str, params: SamplingParams | None = None, *, parse_special: bool = False
    ) -> Iterator[Delta]:
        self.asked.append({"prompt": prompt, "params": params, "parse_special": parse_special})
        return self._stream()


class Endless(StandIn):
    """Talks until it is stopped."""

    def _stream(self) -> Iterator[Delta]:
        print("ready", file=__import__("sys").stderr, flush=True)
        while True:
            yield Delta("line\n")
            time.sleep(0.01)


class StandInCheckpoint:
    """Enough of a Checkpoint for commands that only need its tokenizer."""

    generation = GenerationConfig()
    path = Path("stand-in")

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def open(self, model: str | None, *, offline: bool) -> StandInCheckpoint:
        return self

    def tokenizer(self) -> Any:
        return self._tokenizer


if __name__ == "__main__":
    from qwenkit.cli.loading import State
    from qwenkit.cli.main import main

    main(state=State(load=Endless().load))
