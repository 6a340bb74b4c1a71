"""`qwenkit serve`: an OpenAI-style API on a port."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from qwenkit.cli import options
from qwenkit.cli.browser import open_page
from qwenkit.cli.loading import chosen_model
from qwenkit.core import UnsupportedError


def serve(
    ctx: typer.Context,
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    served_name: Annotated[
        list[str] | None,
        typer.Option(help="What clients call the model; may be repeated. Its own name always works."),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys that open the server, one a line.")
    ] = None,
    rate_limit: Annotated[
        int, typer.Option(min=0, help="Requests a minute of each key, or address without keys; 0: no limit.")
    ] = 0,
    token_rate_limit: Annotated[
        int, typer.Option(min=0, help="Tokens a minute of each, prompts and replies; 0: no limit.")
    ] = 0,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Speak TLS with this certificate (PEM).")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's key (PEM, no password).")
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Let web pages of this origin ask; may be repeated.")
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve a page to chat on at /.")] = True,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser when the model is there.")
    ] = False,
    max_running: Annotated[int, typer.Option(min=1, help="Replies computed together.")] = 32,
    max_queue: Annotated[int, typer.Option(min=0, help="Prompts that may wait; more get a 429.")] = 128,
    max_choices: Annotated[int, typer.Option(min=1, help="Largest n of a request.")] = 16,
    max_body: Annotated[int, typer.Option(min=1024, help="Largest body of a request, in bytes.")] = 4 << 20,
    request_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds a reply may take, waiting included.")
    ] = 600.0,
    idle_timeout: Annotated[
        int, typer.Option(min=1, help="Seconds a connection may be open without a request.")
    ] = 30,
    step_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds a step may take before the engine is restarted; 0 waits.")
    ] = 300.0,
    drain_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds replies may go on after SIGTERM or Ctrl-C.")
    ] = 30.0,
    tool_format: Annotated[
        Literal["auto", "react", "hermes"],
        typer.Option(help="How the model is shown tools and calls them; auto is what it was trained on."),
    ] = "auto",
    log_format: Annotated[Literal["text", "json"], typer.Option(help="Form of the log on stderr.")] = "text",
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="info has a line for every request.")
    ] = "info",
    otel: Annotated[
        bool,
        typer.Option("--otel/--no-otel", help="Send OpenTelemetry traces where the OTEL_* variables say."),
    ] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    weights: options.Weights = "auto",
    head: options.Head = "auto",
    kv_cache: options.KVCache = None,
    cache_tokens: options.CacheTokens = None,
    draft_model: options.DraftModel = None,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
) -> None:
    """Serve a model with an OpenAI-style API.

    API keys come from --api-key-file and from $QWENKIT_API_KEYS (comma separated); with none the server is
    open to whoever reaches it. The engine runs in a process of its own and is restarted if it dies.
    """
    name = chosen_model(model, model_option)
    check_installed("The server")
    if otel:
        _check_otel()
    if open_browser and not page:
        raise typer.BadParameter("--open opens the page that --no-page leaves out; give one of them.")
    from qwenkit.serve.engine.messages import EngineConfig
    from qwenkit.serve.guard.keys import Keys
    from qwenkit.serve.guard.limits import Limits
    from qwenkit.serve.server import serve as run
    from qwenkit.serve.settings import ServeSettings

    limits = Limits(
        max_queue=max_queue, n=max_choices, body_bytes=max_body, request_s=request_timeout,
        step_s=step_timeout, idle_s=idle_timeout,
        requests_a_minute=rate_limit, tokens_a_minute=token_rate_limit,
    )  # fmt: skip
    engine = {**options.loading(ctx), "max_running": max_running, "max_waiting": max_running + max_queue}
    settings = ServeSettings(
        engine=EngineConfig(name, engine),
        host=host,
        port=port,
        names=tuple(served_name or ()),
        keys=Keys.read(api_key_file, os.environ),
        limits=limits,
        tls_cert=tls_cert,
        tls_key=tls_key,
        cors_origins=tuple(cors_origin or ()),
        page=page,
        tool_format=tool_format,
        drain_s=drain_timeout,
        otel=otel,
        log_format=log_format,
        log_level=log_level,
    )
    run(settings, quiet=quiet, ready=open_page if open_browser else None)


def _check_otel() -> None:
    """Raises UnsupportedError, naming the extra, where nothing can send traces."""
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http") and find_spec("opentelemetry.sdk")
    except ModuleNotFoundError:
        found = None
    if not found:
        raise UnsupportedError(
            "--otel needs OpenTelemetry's SDK and OTLP exporter, not installed here.",
            "Install the extra: pip install 'qwenkit[otel]'.",
        )


def check_installed(what: str) -> None:
    """Raises UnsupportedError, saying what needs the extra, if it is not there."""
    missing = [
        name for name in ("fastapi", "uvicorn", "httpx", "prometheus_client") if find_spec(name) is None
    ]
    if missing:
        raise UnsupportedError(
            f"{what} needs {', '.join(missing)}, not installed here.",
            "Install the extra: pip install 'qwenkit[serve]'.",
        )
