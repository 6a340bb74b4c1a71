"""How a text completion is written: the JSON of a whole one and of its chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from qwenkit.core import Delta, TokenLogprob, Usage
from qwenkit.serve.engine.messages import Accepted
from qwenkit.serve.openai.completion import CompletionStream, Envelope, usage_json
from qwenkit.serve.openai.schemas import StreamUsage
from qwenkit.serve.replies.format import Chunks
from qwenkit.serve.replies.logprobs import TextLogprobs, joined
from qwenkit.serve.replies.written import Written, best


class TextFormat(CompletionStream):
    """text_completion. echo: the prompt comes first; logprobs: whether they were asked for; ranked: more
    choices than `n` are generated, and the likeliest written."""

    def __init__(
        self,
        envelope: Envelope,
        n: int,
        *,
        echo: bool,
        logprobs: bool,
        usage: StreamUsage,
        ranked: bool = False,
    ) -> None:
        self._envelope = envelope
        self._n = n
        self._ranked = ranked
        self._echo = echo
        self._logprobs = logprobs
        super().__init__(usage)
        self._writers: dict[tuple[int, int], TextLogprobs] = defaultdict(TextLogprobs)

    def opening(self, accepted: Sequence[Accepted]) -> Chunks:
        self.count(sum(one.prompt_tokens for one in accepted), 0)
        if not self._echo:
            return []
        return [
            self._chunk(prompt, index, *self._prompt(prompt, index, one))
            for prompt, one in enumerate(accepted)
            for index in range(self._n)
        ]

    def chunk(self, prompt: int, delta: Delta) -> Chunks:
        self.count(0, len(delta.token_ids))
        logprobs = None
        if self._logprobs and (told := self._told(delta.logprobs, delta.end_logprob)):
            logprobs = self._writers[prompt, delta.index].add(told)
        return [self._chunk(prompt, delta.index, delta.text, logprobs, delta.finish_reason)]

    def whole(self, accepted: Sequence[Accepted], written: dict[tuple[int, int], Written]) -> dict[str, Any]:
        choices = []
        if self._ranked:
            written = best(written, self._n)
        for prompt, one in enumerate(accepted):
            for index in range(self._n):
                choice = written.get((prompt, index), Written(finish_reason="length"))
                text, scores = self._prompt(prompt, index, one) if self._echo else ("", None)
                logprobs = None
                if self._logprobs:
                    own = self._writers[prompt, index].add(self._told(choice.logprobs, choice.end_logprob))
                    logprobs = joined([own] if scores is None else [scores, own])
                choices.append(
                    self._choice(prompt, index, text + choice.text, logprobs, choice.finish_reason)
                )
        return self._envelope.around("text_completion", choices)

    def closing(self, usage: Usage) -> Chunks:
        told = self._envelope.around("text_completion", [], usage=usage_json(usage))
        return [told] if self._more else []

    def _prompt(self, prompt: int, index: int, accepted: Accepted) -> tuple[str, Any]:
        scores = accepted.prompt_logprobs
        return accepted.text, None if scores is None else self._writers[prompt, index].add(scores)

    def _told(self, tokens: Sequence[TokenLogprob] | None, end: TokenLogprob | None) -> list[TokenLogprob]:
        """With echo the token that ended the text is told, too: who scores a prompt asks for a token after,
        and leaves out the last of the list."""
        return [*(tokens or ()), *([end] if self._echo and end is not None else [])]

    def _choice(self, prompt: int, index: int, text: str, logprobs: Any, finish: str | None) -> Any:
        number = prompt * self._n + index
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _chunk(
        self, prompt: int, index: int, text: str, logprobs: Any = None, finish: str | None = None
    ) -> Any:
        choice = self._choice(prompt, index, text, logprobs, finish)
        return self._envelope.around("text_completion", [choice], **self._more)
