"""`qwenkit quantize`: a 16-bit checkpoint to a GPTQ folder of 4 or 8 bits, measured at the end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qwenkit.cli import options
from qwenkit.cli.loading import State, chosen_model

if TYPE_CHECKING:
    from qwenkit.checkpoint import Checkpoint
    from qwenkit.quantize import Report, Settings

EXIT_FAILED = 3  # written, but worse than allowed


def quantize(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    bits: Annotated[int, typer.Option(help="4 or 8.")] = 4,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="BITS|SIZE",
            help="Give the layers that need it more bits: 4.3bits a weight, or 480MB for all tensors.",
        ),
    ] = None,
    group_size: Annotated[
        int, typer.Option(help="Inputs that share a scale: 32, 64, 128, or -1 for all of a row.")
    ] = 128,
    symmetric: Annotated[
        bool, typer.Option("--sym/--asym", help="Whether the zero is the middle code, or one a group.")
    ] = True,
    act_order: Annotated[
        bool,
        typer.Option("--act-order", help="Round the inputs that vary most first: better, and slower to run."),
    ] = False,
    method: Annotated[
        Literal["gptq", "rtn"], typer.Option(help="rtn rounds to nearest, with no calibration.")
    ] = "gptq",
    calibration: Annotated[
        str,
        typer.Option(
            metavar="FILE|DIR|builtin", help="Conversations (.json, .jsonl), plain text, or a folder of them."
        ),
    ] = "builtin",
    samples: options.Samples = 128,
    length: options.Length = 1024,
    damping: Annotated[
        float, typer.Option(min=0.0, help="Share of the mean second moment added to each.")
    ] = 0.5,
    correction: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of earlier layers' errors that a layer makes up for.",
        ),
    ] = 0.5,
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Of the computation, not of the result.")
    ] = "bfloat16",
    eval_text: options.EvalTexts = None,
    max_ppl_increase: options.MaxPplIncrease = 2.0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an unfinished run left in DIR.unfinished.")
    ] = False,
    offline: options.Offline = False,
) -> None:
    """Write a checkpoint as GPTQ, 4 or 8 bits, and measure what was lost.

    One block is in memory at a time. Interrupted, the same command continues after the last finished layer.
    The folder is of the source's layout and complete: other engines read it.
    """
    from qwenkit.quant.gptq_rounding import Rounding
    from qwenkit.quantize import Budget, Settings

    state: State = ctx.obj
    settings = Settings(
        method=method,
        rounding=Rounding(bits, group_size, symmetric, act_order, damping),
        budget=None if budget is None else Budget.parse(budget),
        calibration=calibration,
        samples=samples,
        length=length,
        dtype=dtype,
        correction=correction,
    )
    source = state.open(chosen_model(model, model_option), offline=offline)
    run(
        source,
        out,
        settings,
        eval_texts=eval_text or (),
        max_increase=max_ppl_increase,
        restart=restart,
        advice="more calibration, --group-size 32, --act-order or --bits 8",
    )


def run(source: Checkpoint, out: Path, settings: Settings, *, advice: str, **asked: Any) -> None:
    """Quantize with a bar, and show the report. advice: for a result that lost too much (exit 3)."""
    from qwenkit.cli.quantize_progress import QuantizeProgress
    from qwenkit.quantize import quantize as quantize_checkpoint

    with QuantizeProgress(source.config.num_layers) as watch:
        try:
            report = quantize_checkpoint(source, out, settings, watch=watch, **asked)
        except KeyboardInterrupt:
            watch.note("Stopped. The same command continues after the last finished layer.")
            raise
    _show(report, out, advice)
    if report.state == "failed":
        raise typer.Exit(EXIT_FAILED)


def _show(report: Report, out: Path, advice: str) -> None:
    from qwenkit.checkpoint.progress import gigabytes
    from qwenkit.cli.terminal import print_table

    rows = [("text", "tokens", "original", "quantized", "change")]
    for text in report.texts:
        original, quantized = (_perplexity(loss, text.tokens) for loss in (text.original, text.quantized))
        rows.append((text.name, str(text.tokens), original, quantized, f"{text.change:+.2%}"))
    size = report.nbytes
    lines = [f"size: {gigabytes(size['source'])} -> {gigabytes(size['result'])}"]
    if report.mixture:
        from qwenkit.quantize.mixture import table

        lines.append(f"{report.mixture['bits_a_weight']:.3f} bits a weight")
        lines += [f"{how}: {which}" for how, which in table(report.mixture)]
    speeds = [f"{name} {1000 * seconds:.1f} ms" for name, seconds in report.seconds_per_token.items()]
    if speeds:
        lines.append(f"a token takes: {', '.join(speeds)}")
    lines.append(
        f"perplexity: {report.increase:+.2f} % over all texts; allowed are {report.max_increase:g} %"
    )
    print_table(rows, lines)
    if report.state == "failed":
        typer.secho(
            f"FAILED: {out} predicts worse than allowed. It is marked so in quantize_report.json; "
            f"try {advice}.",
            fg="red",
            err=True,
        )
    else:
        typer.echo(f"{out} is done.", err=True)


def _perplexity(loss: float, tokens: int) -> str:
    return "nan" if math.isnan(loss) else f"{math.exp(loss / tokens):.3f}"
