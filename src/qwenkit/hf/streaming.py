"""Token ids of a running generate(), one pass at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class _Cancelled(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class _Handover(BaseStreamer):
    """Passes new ids to the reader; waits until the last ones were taken, so it never runs far ahead."""

    def __init__(self) -> None:
        self.queue: queue.Queue[list[int] | BaseException | None] = queue.Queue(maxsize=1)
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True  # generate hands the prompt over first
            return
        self.queue.put(value.reshape(-1).tolist())

    def end(self) -> None:
        """The thread itself reports the end, after generate has returned or failed."""


def stream_tokens(generate: Callable[..., Any]) -> Generator[list[int], None, None]:
    """Yield the new ids of each pass of `generate(streamer=..., stopping_criteria=...)`, for one row.

    Generation runs in a thread of its own, at most one pass ahead. An error in it is raised here; closing
    the iterator early ends it before its next token.
    """
    handover, cancelled = _Handover(), threading.Event()

    def work() -> None:
        end: BaseException | None = None
        try:
            generate(streamer=handover, stopping_criteria=[_Cancelled(cancelled)])
        except BaseException as error:  # noqa: BLE001  (raised again by the reader, whatever it is)
            end = error
        handover.queue.put(end)

    thread = threading.Thread(target=work, name="qwenkit-chat-stream", daemon=True)
    thread.start()
    try:
        while isinstance(item := handover.queue.get(), list):
            yield item
        if item is not None:
            raise item
    finally:
        cancelled.set()
        while thread.is_alive():  # the thread may wait for room to hand over its last ids
            try:
                handover.queue.get(timeout=0.01)
            except queue.Empty:
                continue
        thread.join()
