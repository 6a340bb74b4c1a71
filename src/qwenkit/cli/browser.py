"""Opening an address in the person's browser, where there is one."""

from __future__ import annotations

import os
import sys
import webbrowser
from urllib.parse import urlsplit

import typer


def open_page(address: str) -> None:
    """Open the page of a server that listens at `address`; say where it is if no browser will."""
    page = _reachable(address)
    if not (_has_screen() and webbrowser.open(page)):
        typer.echo(f"Open {page} in a browser.", err=True)


def _reachable(address: str) -> str:
    """The address for a browser on this machine: a server on all addresses is on loopback too."""
    parts = urlsplit(address)
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(parts.hostname or "")
    return f"{parts.scheme}://{host}:{parts.port}/" if host else f"{address}/"


def _has_screen() -> bool:
    """Without one, `webbrowser` would start a text browser in this terminal, over the server's log."""
    if sys.platform in ("win32", "darwin") or "BROWSER" in os.environ:
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
