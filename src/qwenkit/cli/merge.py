"""`qwenkit merge`: a checkpoint with a LoRA adapter merged into its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qwenkit.cli import options
from qwenkit.cli.convert import parse_size
from qwenkit.cli.loading import State
from qwenkit.cli.quantize import run
from qwenkit.core import RequestError

if TYPE_CHECKING:
    from qwenkit.checkpoint import MergedCheckpoint


def merge(
    ctx: typer.Context,
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="A checkpoint folder, a GGUF file or a hub name.")
    ],
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="A folder with adapter_config.json, or a hub name.")
    ],
    out: Annotated[Path, typer.Option(metavar="DST", help="A new folder.")],
    dtype: Annotated[
        str | None, typer.Option(help="bfloat16, float16 or float32.", show_default="the base's")
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of the weight files.", show_default="5GB")
    ] = None,
    requantize: Annotated[
        Literal["gptq", "rtn", "none"] | None,
        typer.Option(
            help="Of a GPTQ base: as it was quantized, or rounded to nearest, or floats.",
            show_default="gptq for such a base",
        ),
    ] = None,
    calibration: Annotated[
        str, typer.Option(metavar="FILE|DIR|builtin", help="To quantize again with; see qwenkit quantize.")
    ] = "builtin",
    samples: options.Samples = 128,
    length: options.Length = 1024,
    eval_text: options.EvalTexts = None,
    max_ppl_increase: options.MaxPplIncrease = 2.0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an unfinished run left in DST.unfinished.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be changed; write nothing.")
    ] = False,
    offline: options.Offline = False,
) -> None:
    """Merge a LoRA adapter of peft into its base, in the base's layout.

    A GPTQ base is quantized again as it was: layers that the adapter does not touch keep their words, and the
    perplexity is measured against base and adapter in floats, as by `qwenkit quantize`.

    The adapter may be named in v1 or in Qwen2 terms, whatever the base is. Every tensor of it is used, or it
    is refused with the reason.
    """  # fmt: skip
    from qwenkit.checkpoint import MergedCheckpoint, locate, plan_merge, read_adapter
    from qwenkit.checkpoint.progress import gigabytes
    from qwenkit.engine.device import parse_dtype

    state: State = ctx.obj
    source = state.open(base, offline=offline)
    read = read_adapter(locate(adapter, offline=offline).path)
    if source.gptq is None and requantize in ("gptq", "rtn"):
        raise RequestError(
            f"{base} is not quantized by GPTQ, so there is nothing to quantize again.",
            "Leave --requantize out; `qwenkit quantize` is for the merged folder.",
        )
    if source.gptq is not None and requantize != "none":
        if dtype or max_shard_size:
            raise RequestError(
                "--dtype and --max-shard-size are for floats.", "Add --requantize none, or leave them out."
            )
        merged = MergedCheckpoint(source, read)
        if dry_run:
            _show(merged, merged.notes)
            return
        from qwenkit.quantize import settings_like

        run(
            merged,
            out,
            settings_like(
                source, method=requantize or "gptq", calibration=calibration, samples=samples, length=length
            ),
            eval_texts=eval_text or (),
            max_increase=max_ppl_increase,
            restart=restart,
            advice="more calibration (--samples, --calibration), or --requantize none",
        )
        return
    conversion = plan_merge(
        source,
        read,
        dtype=None if dtype is None else parse_dtype(dtype),
        max_shard_bytes=None if max_shard_size is None else parse_size(max_shard_size),
    )
    conversion.check_name(out)
    if dry_run:
        _show(MergedCheckpoint(source, read), conversion.losses)
        return
    conversion.write(out, progress=True)
    for loss in conversion.losses:
        typer.echo(f"note: {loss}", err=True)
    typer.echo(f"{gigabytes(conversion.nbytes)} of weights written to {out}", err=True)


def _show(merged: MergedCheckpoint, notes: Sequence[str]) -> None:
    """Every tensor of the base that would change, and how."""
    from qwenkit.cli.terminal import print_table

    rows = []
    for name, changes in merged.merged.changed.items():
        shape = "x".join(map(str, merged.merged.entry(name).shape))
        rows.append((name, shape, ", ".join(change.words for change in changes)))
    after = [f"{len(rows)} of {len(merged.entries())} tensors would change; nothing was written."]
    print_table(rows, [*after, *(f"note: {note}" for note in notes)])
