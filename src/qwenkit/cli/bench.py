"""`qwenkit bench`: how fast a model runs here, in physical units, alone or beside other engines."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qwenkit.cli import options
from qwenkit.cli.loading import chosen_model
from qwenkit.cli.result_file import check_place, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwenkit.bench.workload import Workload

_FREE_SHARE = 0.4  # of the memory, to stay free for an engine that comes next


def bench(
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    shape: Annotated[
        str | None,
        typer.Option(help="A published size by name (qwen-1.8b ...) with random weights, instead of MODEL."),
    ] = None,
    weights: Annotated[
        Literal["bf16", "int8", "int4"] | None,
        typer.Option(help="Format of the weights; as stored (bf16 for a shape) when left out."),
    ] = None,
    kv_cache: Annotated[
        Literal["bf16", "int8", "int4"] | None, typer.Option(help="Format of keys and values in the cache.")
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    decode: Annotated[int, typer.Option(min=1, help="Tokens to decode after a prompt.")] = 64,
    depth: Annotated[
        list[int] | None, typer.Option(min=1, help="Also decode after a prompt this long; may be repeated.")
    ] = None,
    concurrency: Annotated[
        list[int] | None, typer.Option(min=1, help="Also this many prompts at once; may be repeated.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads; all cores of this process when left out.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the table has their medians.")] = 3,
    peers: Annotated[
        bool, typer.Option("--peers", help="Run every other engine that is installed beside qwenkit.")
    ] = False,
    peer: Annotated[
        list[str] | None, typer.Option(help="Run this engine beside qwenkit; may be repeated.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all numbers as JSON.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw a picture: .png, .svg or .pdf.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds for one measurement; a peer that needs longer is dropped.")
    ] = 300.0,
    device: options.Device = "auto",
    offline: options.Offline = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model on this machine.

    Prompt and decoding speed, first token, many prompts at once, load time and memory; random tokens,
    greedy, end tokens ignored. Bandwidth and peak of the machine are measured in the same run, and shares
    are of those. Interrupted, it shows and keeps what it has.
    """
    name = chosen_model(model, model_option)
    named = ["all"] * peers + (peer or [])
    if shape is not None and name is not None:
        raise typer.BadParameter("Give MODEL or --shape, not both.")
    from qwenkit.bench.interruption import Interrupted, interruptible
    from qwenkit.bench.workload import Workload

    workload = Workload(prompt, decode, tuple(depth or ()), tuple(concurrency or ()), repeats)
    job = {
        "model": name, "shape": shape, "weights": weights, "kv_cache": kv_cache, "threads": threads,
        "device": device, "offline": offline, "context": workload.context, "sequences": workload.sequences,
        "cache_tokens": workload.cache_tokens,
    }  # fmt: skip
    for path in (json_file, plot):
        check_place(path)
    if plot is not None:
        from qwenkit.bench.plot import check_plot

        check_plot(plot)
    say = (lambda text: None) if quiet else (lambda text: typer.secho(text, dim=True, err=True))
    latest: dict[str, Any] = {}

    def keep(summary: dict[str, Any]) -> None:
        latest.update(summary)
        if json_file is not None:
            write_json(json_file, summary)

    try:
        with interruptible():
            try:
                measure(job, named, workload, keep=keep, timeout_s=timeout, say=say)
            finally:
                if latest:
                    _show(latest, plot)
    except Interrupted as interrupted:
        typer.echo(str(interrupted), err=True)
        raise typer.Exit(interrupted.status) from interrupted


def measure(
    job: dict[str, Any],
    peers: list[str],
    workload: Workload,
    *,
    keep: Callable[[dict[str, Any]], None],
    say: Callable[[str], None],
    **options: Any,
) -> None:
    """Run qwenkit and the engines called `peers`. keep: given the summary so far, round after round, however
    it ends. options: those of Rounds.
    """
    from qwenkit.bench import own
    from qwenkit.bench.peers.catalog import choose, contenders
    from qwenkit.bench.peers.files import Source
    from qwenkit.bench.rounds import OWN, Contender, Rounds
    from qwenkit.bench.summary import summarize
    from qwenkit.cli.machine import cores, cpu_fields, cpu_name

    usable, _ = cores()
    job["threads"] = job["threads"] or usable
    running = [Contender(OWN, sys.executable, Path(own.__file__), job)]
    absent: dict[str, str] = {}
    if chosen := choose(peers):
        source = Source(job["model"], job["shape"], offline=job["offline"], say=say)
        able, absent = contenders(chosen, source, job, os.environ)
        running += able
    machine = {"cpu": cpu_name(cpu_fields()), "cores": usable}

    def save() -> None:
        keep(summarize(rounds, machine, absent))

    rounds = Rounds(running, workload, roomy=_roomy, save=save, say=say, **options)
    rounds.run()


def _roomy() -> bool:
    """Whether an engine may stay loaded while the others take their turns."""
    from qwenkit.engine.memory import host_memory

    found = host_memory()
    return found is None or found[1] > found[0] * _FREE_SHARE


def _show(summary: dict[str, Any], plot: Path | None) -> None:
    if plot is not None:
        from qwenkit.bench.plot import draw

        draw(summary, plot)
    from rich.console import Console

    from qwenkit.bench.report import show
    from qwenkit.cli.terminal import is_terminal

    if is_terminal(sys.stdout):
        show(summary, Console(highlight=False))
        return
    console = Console(highlight=False, width=200)
    with console.capture() as captured:
        show(summary, console)
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())
