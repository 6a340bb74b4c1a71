"""`qwenkit web`: a page to chat on, in the browser."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import typer

from qwenkit.cli.serve import serve


def web(ctx: typer.Context, **given: Any) -> None:
    """Chat with a model in the browser.

    The same as `serve --open`, with all options of `serve`: starts the server on this machine, waits for the
    model, and opens its page. Ctrl-C ends it.
    """
    serve(ctx, **given)


def _as_serve() -> inspect.Signature:
    """The parameters of serve, but that the browser is opened unless told otherwise."""
    parameters = []
    for one in inspect.signature(serve, eval_str=True).parameters.values():
        parameters.append(one.replace(default=True) if one.name == "open_browser" else one)
    return inspect.Signature(parameters, return_annotation=None)


# What typer reads instead of **given.
setattr(web, "__signature__", _as_serve())  # noqa: B010  mypy knows no such attribute of functions
web.__annotations__ = get_type_hints(serve)
