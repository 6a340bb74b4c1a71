"""One server with default options that most tests share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from running_server import RunningServer

import chromium

if TYPE_CHECKING:
    from chat_page import ChatPage
    from page_server import PageServer, ScriptedEngine

if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client", "openai") if not find_spec(name)]:
    collect_ignore_glob = ["test_*.py"]
    warnings.warn(f"tests/serve is left out, for want of {', '.join(missing)} (extra dev).", stacklevel=1)


@pytest.fixture(scope="session")
def server(tiny_chat: Path) -> Iterator[RunningServer]:
    running = RunningServer(tiny_chat, "--served-name", "gpt-test")
    yield running.ready()
    running.stop()


@pytest.fixture
def start() -> Iterator[Callable[..., RunningServer]]:
    """Starts servers as RunningServer does; they are ended with the test, however it ends."""
    started: list[RunningServer] = []

    def begin(*arguments: Any, **named: Any) -> RunningServer:
        started.append(RunningServer(*arguments, **named))
        return started[-1]

    yield begin
    for running in started:
        running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium. Ended with its module: playwright's loop would be in the way of others' asyncio."""
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium.find(), args=options)
        yield started
        started.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., PageServer]]:
    """Starts servers as PageServer does, over a ScriptedEngine without scripts if none is given."""
    from page_server import PageServer, ScriptedEngine

    started: list[PageServer] = []

    def begin(engine: ScriptedEngine | None = None, **settings: Any) -> PageServer:
        started.append(PageServer(engine or ScriptedEngine(), **settings))
        return started[-1]

    yield begin
    for server in started:
        server.stop()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., ChatPage]]:
    """Opens the page of a server as somebody new would; nothing may go wrong in it."""
    from chat_page import ChatPage

    opened: list[ChatPage] = []

    def begin(server: PageServer, **looks: Any) -> ChatPage:
        opened.append(ChatPage(browser, server.url, **looks))
        return opened[-1]

    yield begin
    for chat in opened:
        chat.context.close()
    assert [chat.complaints for chat in opened] == [[] for _ in opened]
