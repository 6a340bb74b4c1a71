"""examples/gradio_demo.py: a client like any other; where Gradio is installed, its page is built too."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PATH = Path(__file__).parents[1] / "examples/gradio_demo.py"


class Client:
    """Streams the words "You said " and the last question; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    def _create(self, *, model: str, messages: Any, stream: bool) -> Iterator[Any]:
        assert (model, stream) == ("qwen", True)
        self.asked.append(messages)
        for piece in (None, "You said ", messages[-1]["content"], None):
            yield SimpleNamespace(choices=[SimpleNamespace(delta=SimpleNamespace(content=piece))])
        yield SimpleNamespace(choices=[])  # the chunk with the usage


@pytest.fixture
def demo() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(PATH)))


def test_reply_grows_and_history_is_the_raw_text(demo: SimpleNamespace) -> None:
    client = Client()
    parts = [{"type": "text", "text": "<b>"}, {"type": "text", "text": "hi"}]
    turns = [{"role": "user", "content": parts, "metadata": None}]
    replies = [grown[-1]["content"] for grown in map(list, demo.ask(client, "qwen", turns))]
    assert replies[-1] == "You said <b>hi"
    assert client.asked == [[{"role": "user", "content": "<b>hi"}]]


def test_regenerating_asks_the_last_question_again(demo: SimpleNamespace) -> None:
    one, two = {"role": "user", "content": "one"}, {"role": "user", "content": "two"}
    reply = {"role": "assistant", "content": "x"}
    assert demo.without_last_reply([one, reply, two, reply]) == [one, reply, two]
    assert demo.without_last_reply([one]) == [one]
    assert demo.without_last_reply([]) == []


def test_page_is_built(demo: SimpleNamespace) -> None:
    pytest.importorskip("gradio", reason="the example needs Gradio, and nothing else does")
    assert demo.build(Client(), "qwen").fns
