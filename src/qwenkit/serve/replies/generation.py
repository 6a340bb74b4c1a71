"""From an HTTP request to its response: admission, time limit, counting; the same for every endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qwenkit.core import Delta, Usage
from qwenkit.serve.engine.messages import Accepted
from qwenkit.serve.engine.reply import ReplyGroup
from qwenkit.serve.engine.supervisor import Wish
from qwenkit.serve.errors import ServeError
from qwenkit.serve.http.event_stream import ClientLeftError, EventStream, compact, unless_left
from qwenkit.serve.http.record import record
from qwenkit.serve.replies.format import Format
from qwenkit.serve.replies.written import Written
from qwenkit.serve.service import Service


async def respond(
    http: Request, service: Service, wishes: Sequence[Wish], format: Format, *, stream: bool
) -> Response:
    """Generate for all `wishes` and write it in `format`.

    The status is decided only when the engine has taken every prompt, so an error is never a 200. Raises
    ServeError.
    """
    with ExitStack() as kept:
        kept.enter_context(service.admission.places(len(wishes)))
        about = record(http.scope)
        about.params, about.stream = wishes[0].params, stream
        run = _Run(http, service, service.engine.generate(wishes))
        kept.callback(run.close)
        try:
            accepted = await unless_left(http, run.group.accepted())
            if stream:
                events = run.events(accepted, format)
                return EventStream(events, kept.pop_all().close, run.seconds, format)
            body = await unless_left(http, run.collect(accepted, format))
        except ClientLeftError:
            about.left = True
            return Response(status_code=499)  # nobody reads it; the log does
        return Response(compact(body), media_type="application/json")


class _Run:
    """One HTTP request's replies while they come. Close it whatever happens."""

    def __init__(self, http: Request, service: Service, group: ReplyGroup) -> None:
        self.group = group
        self.seconds = service.settings.limits.request_s
        self._record = record(http.scope)
        self._service = service
        self._began = time.monotonic()
        self._record.prompt_tokens = self._record.completion_tokens = 0
        self._last: dict[tuple[int, int], float] = {}
        service.groups.add(group)
        self._timer = asyncio.get_running_loop().call_later(self.seconds, self._too_long)

    def close(self) -> None:
        """Cancel what has not ended."""
        self._timer.cancel()
        self._service.groups.discard(self.group)
        self.group.close()

    async def events(self, accepted: Sequence[Accepted], format: Format) -> AsyncIterator[dict[str, Any]]:
        self._took(accepted)
        for chunk in format.opening(accepted):
            yield chunk
        async for prompt, delta in self.group.deltas():
            self._note(prompt, delta)
            for chunk in format.chunk(prompt, delta):
                yield chunk
        for chunk in format.closing(self._finish()):
            yield chunk

    async def collect(self, accepted: Sequence[Accepted], format: Format) -> dict[str, Any]:
        self._took(accepted)
        written: dict[tuple[int, int], Written] = {}
        texts: dict[tuple[int, int], list[str]] = {}
        async for prompt, delta in self.group.deltas():
            self._note(prompt, delta)
            choice = written.setdefault((prompt, delta.index), Written())
            texts.setdefault((prompt, delta.index), []).append(delta.text)
            if delta.logprobs is not None:
                choice.logprobs = [*(choice.logprobs or ()), *delta.logprobs]
            if delta.finish_reason is not None:
                choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
                choice.end_logprob = delta.end_logprob
        for key, parts in texts.items():
            written[key].text = "".join(parts)
        return {**format.whole(accepted, written), "usage": format.usage(self._finish())}

    def _finish(self) -> Usage:
        ends = [reply.done for reply in self.group.replies if reply.done is not None]
        for end in ends:
            self._service.metrics.finished(end.usage, end.timings)
        total = Usage(
            sum(end.usage.prompt_tokens for end in ends),
            sum(end.usage.completion_tokens for end in ends),
            sum(end.usage.cached_tokens for end in ends),
        )
        self._record.prompt_tokens = total.prompt_tokens
        self._record.completion_tokens = total.completion_tokens
        self._record.cached_tokens = total.cached_tokens
        self._record.queue_s = max((end.timings.queue_s for end in ends), default=None)
        self._record.prefill_s = max((end.timings.prefill_s for end in ends), default=None)
        return total

    def _took(self, accepted: Sequence[Accepted]) -> None:
        self._record.prompt_tokens = sum(one.prompt_tokens for one in accepted)

    def _note(self, prompt: int, delta: Delta) -> None:
        now, key, tokens = time.monotonic(), (prompt, delta.index), len(delta.token_ids)
        if delta.finish_reason is not None:
            self._record.finish_reasons.append(delta.finish_reason)
        if not self._last:
            self._record.first_token_s = now - self._began
        self._record.completion_tokens = (self._record.completion_tokens or 0) + tokens
        metrics = self._service.metrics
        if key in self._last:
            metrics.inter_token.observe((now - self._last[key]) / max(1, tokens))
        else:
            metrics.first_token.observe(now - self._began)
        self._last[key] = now

    def _too_long(self) -> None:
        problem = f"The reply was not finished within {self.seconds:g} s."
        remedy = "Ask for fewer tokens, or start the server with a larger --request-timeout."
        self.group.fail(ServeError(problem, remedy, status=504, code="request_timeout"))
