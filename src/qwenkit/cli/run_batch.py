"""`qwenkit run-batch`: a file of requests in, a file of answers out."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenkit.cli import options
from qwenkit.cli.loading import chosen_model
from qwenkit.cli.serve import check_installed

if TYPE_CHECKING:
    from qwenkit.serve.batch.batch import BatchReport

EXIT_FAILED = 3  # written, but some lines have no good answer
EXIT_INTERRUPTED = 130

KEY_VARIABLE = "QWENKIT_API_KEY"
_BODY_BYTES = 16 << 20


def run_batch(
    ctx: typer.Context,
    input: Annotated[Path, typer.Argument(metavar="INPUT", help="Requests, one JSON object a line.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="Answers; what it has is not asked again.")
    ],
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask a running server; its key comes from $QWENKIT_API_KEY."),
    ] = None,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 64,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again for what failed; its old answers are dropped.")
    ] = False,
    served_name: Annotated[
        list[str] | None, typer.Option(help="What requests call the model; may be repeated.")
    ] = None,
    max_running: Annotated[int, typer.Option(min=1, help="Replies computed together.")] = 32,
    max_choices: Annotated[int, typer.Option(min=1, help="Largest n of a request.")] = 16,
    request_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds a reply may take, waiting included.")
    ] = 3600.0,
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
    """Answer a file of requests, in OpenAI's batch format.

    Each line of INPUT is {"custom_id", "method": "POST", "url", "body"}. An interrupted run goes on where it
    was when it is started again. Exit code: 0 all answered, 3 some lines failed, 130 interrupted.
    """
    name = chosen_model(model, model_option)
    check_installed("A batch")
    if url is not None:
        for given in ("model", "model_option", "served_name"):
            if ctx.params[given] not in (None, [], ()):
                raise typer.BadParameter(
                    "With --url the server has the model: leave MODEL and --served-name out."
                )
    from qwenkit.cli.batch_progress import BatchProgress
    from qwenkit.serve.batch.batch import Batch
    from qwenkit.serve.batch.clients import local_client, remote_client
    from qwenkit.serve.batch.input import check_readable
    from qwenkit.serve.batch.output import BatchOutput
    from qwenkit.serve.engine.messages import EngineConfig
    from qwenkit.serve.guard.limits import Limits
    from qwenkit.serve.http import logs
    from qwenkit.serve.settings import ServeSettings

    check_readable(input)
    logs.configure("text", "warning")
    limits = Limits(n=max_choices, body_bytes=_BODY_BYTES, request_s=request_timeout)
    limits = replace(limits, max_queue=in_flight * limits.prompts)  # in_flight is the limit here
    engine = {
        **options.loading(ctx),
        "max_running": max_running,
        "max_waiting": max_running + limits.max_queue,
    }
    settings = ServeSettings(engine=EngineConfig(name, engine), names=tuple(served_name or ()), limits=limits)

    async def run(answers: BatchOutput, watch: BatchProgress) -> BatchReport:
        key = os.environ.get(KEY_VARIABLE)
        async with (
            local_client(settings, watch.notice)
            if url is None
            else remote_client(url, key, connections=in_flight, seconds=request_timeout)
        ) as client:
            batch = Batch(client, answers, watch, in_flight=in_flight, longest=_BODY_BYTES)
            return await batch.run(input)

    with BatchOutput(output, again=retry_failed) as answers, BatchProgress(silent=quiet) as watch:
        report = asyncio.run(run(answers, watch))
    if not quiet:
        typer.echo(_summary(report), err=True)
    if report.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if report.failed:
        raise typer.Exit(EXIT_FAILED)


def _summary(report: BatchReport) -> str:
    parts = [f"{report.answered} answered"]
    if report.passed:
        parts.append(f"{report.passed} before")
    if report.failed:
        parts.append(f"{report.failed} failed in all")
    speed = report.completion_tokens / max(1e-3, report.seconds)
    parts.append(f"{report.prompt_tokens} prompt and {report.completion_tokens} completion tokens")
    parts.append(f"{report.seconds:.1f} s, {speed:.1f} tok/s")
    return " · ".join(parts)
