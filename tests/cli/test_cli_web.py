"""`qwenkit web` is `serve` with the browser: the same options, the right address, and no text browser."""

from __future__ import annotations

import inspect
import sys
import webbrowser
from typing import Any

import pytest
import typer.main

from qwenkit.cli.browser import open_page
from qwenkit.cli.main import app, main

pytest.importorskip("fastapi", reason="the extra serve has it")


def options(name: str) -> dict[str, Any]:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return {one.name: (one.opts, one.secondary_opts, one.default, one.help) for one in command.params
            if hasattr(one, "help")}  # fmt: skip


def test_web_has_the_options_of_serve_and_opens_the_browser() -> None:
    serve, web = options("serve"), options("web")
    assert (serve.pop("open_browser")[2], web.pop("open_browser")[2]) == (False, True)
    assert web == serve
    assert len(serve) > 20


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that a browser was asked to open."""
    found: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: bool(found.append(address)) or True)
    return found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["web"], ["http://127.0.0.1:8123/"]),
        (["web", "--no-open"], []),
        (["serve"], []),
        (["serve", "--open"], ["http://127.0.0.1:8123/"]),
        (["web", "--host", "0.0.0.0"], ["http://127.0.0.1:8123/"]),
        (["web", "--host", "::"], ["http://[::1]:8123/"]),
    ],
)
def test_page_is_opened_when_the_server_is_ready(
    arguments: list[str], expected: list[str], opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def serve(settings: Any, *, quiet: bool, ready: Any) -> None:
        seen.append(settings)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        if ready is not None:
            ready(f"http://{host}:8123")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("qwenkit.serve.server.serve", serve)
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "some-model", "--max-queue", "7"])
    assert ended.value.code in (0, None)
    assert opened == expected
    assert seen[0].engine.model == "some-model"
    assert seen[0].limits.max_queue == 7


def test_there_is_no_page_to_open_with_no_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["web", "--no-page"])
    assert ended.value.code == 2
    assert "--no-page" in capsys.readouterr().err


def test_without_a_screen_or_a_browser_the_address_is_said(
    opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    open_page("http://127.0.0.1:8000")
    assert opened == []
    assert capsys.readouterr().err == "Open http://127.0.0.1:8000/ in a browser.\n"
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    open_page("https://box.example:8000")
    assert capsys.readouterr().err == "Open https://box.example:8000/ in a browser.\n"


def test_help_of_web_is_its_own() -> None:
    command = typer.main.get_command(app).commands["web"]  # type: ignore[attr-defined]
    assert inspect.cleandoc(command.help or "").startswith("Chat with a model in the browser.")
