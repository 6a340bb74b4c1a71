"""Ctrl-C and SIGTERM as one exception: a run of minutes ends with what it has. Knows nothing of engines."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The process was asked to end; `status` is the exit status that says so, as shells report it."""

    def __init__(self, number: int) -> None:
        self.status = 128 + number
        super().__init__(f"Interrupted by {signal.Signals(number).name}.")


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted inside, the first one only: nothing disturbs the saving after it.

    A signal that this process ignores stays ignored (a job in the background, nohup). Elsewhere than in the
    main thread, where Python handles signals, this does nothing.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        for heard in before:
            signal.signal(heard, signal.SIG_IGN)
        raise Interrupted(number)

    heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {n: h for n in heard if (h := signal.getsignal(n)) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
