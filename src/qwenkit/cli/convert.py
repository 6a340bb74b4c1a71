"""`qwenkit convert`: a checkpoint in another layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenkit.cli import options
from qwenkit.cli.loading import State

if TYPE_CHECKING:
    from qwenkit.checkpoint import Conversion

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]?)I?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def convert(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A checkpoint folder, a GGUF file or a hub name.")
    ],
    to: Annotated[str, typer.Option(metavar="v1|qwen2|gguf", help="The layout to write.")],
    out: Annotated[Path, typer.Option(metavar="DST", help="A new folder, or a new file ending in .gguf.")],
    form: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Of a GGUF: f32, f16, bf16, q8_0, q4_0 or q4_1.",
            show_default="what keeps most",
        ),
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="Of a GGUF: qwen or qwen2.", show_default="the source's")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of a folder: bfloat16, float16 or float32.", show_default="the source's"),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of a folder's weight files.", show_default="5GB")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="Rows of embedding and output.", show_default="the source's")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be written and lost; write nothing.")
    ] = False,
    offline: options.Offline = False,
) -> None:
    """Write a checkpoint in another layout: v1, Qwen2 or GGUF, floats or GPTQ.

    Nothing is lost without a word: what differs is printed and written beside the weights.
    """  # fmt: skip
    from qwenkit.checkpoint import plan_conversion
    from qwenkit.checkpoint.progress import gigabytes
    from qwenkit.engine.device import parse_dtype

    state: State = ctx.obj
    conversion = plan_conversion(
        state.open(source, offline=offline),
        to,  # type: ignore[arg-type]  # checked there
        dtype=None if dtype is None else parse_dtype(dtype),
        form=form,
        arch=arch,  # type: ignore[arg-type]
        max_shard_bytes=None if max_shard_size is None else parse_size(max_shard_size),
        vocab_size=vocab_size,
    )
    conversion.check_name(out)
    if dry_run:
        _show(conversion, out)
        return
    conversion.write(out, progress=True)
    for loss in conversion.losses:
        typer.echo(f"note: {loss}", err=True)
    if conversion.rounded:
        typer.echo(f"note: {len(conversion.rounded)} float tensors lost digits.", err=True)
    typer.echo(f"{gigabytes(conversion.nbytes)} of weights written to {out}", err=True)


def _show(conversion: Conversion, out: Path) -> None:
    """Every file and tensor that would be written, for a person or a pipe."""
    from qwenkit.checkpoint.progress import gigabytes
    from qwenkit.cli.terminal import print_table

    rows = []
    for name, tensors in conversion.files.items():
        path = str(out / name) if name else str(out)
        rows.append((path, "", "", str(sum(t.nbytes for t in tensors)) if tensors else ""))
        rows += [(f"  {t.name}", t.form, "x".join(map(str, t.shape)), str(t.nbytes)) for t in tensors]
    after = [f"{gigabytes(conversion.nbytes)} of weights; nothing was written."]
    print_table(rows, [*after, *(f"note: {loss}" for loss in conversion.losses)])


def parse_size(text: str) -> int:
    """5GB, 500 MB or a number of bytes. Raises typer.BadParameter (exit 2)."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size; write it as 5GB, 500MB or a number of bytes.")
    return int(float(match["number"]) * _UNITS[match["unit"].upper()])
