"""`qwenkit perplexity`: how well a model predicts a text, in any number formats, also by position."""

from __future__ import annotations

from itertools import product
from math import exp
from pathlib import Path
from typing import Annotated, Any

import typer

from qwenkit.cli import options
from qwenkit.cli.loading import State, chosen_model
from qwenkit.cli.result_file import check_place, write_json

Texts = Annotated[
    list[Path],
    typer.Option("--text", "-t", metavar="FILE", help="UTF-8 text, or .jsonl of records; may be repeated."),
]
Length = Annotated[int, typer.Option(min=2, help="Tokens of a window, which starts afresh.")]
Windows = Annotated[int | None, typer.Option(min=1, help="Most windows of each file; all if left out.")]
JSONFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the numbers as JSON.")
]


def perplexity(
    ctx: typer.Context,
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    text: Texts = [],  # noqa: B006  (typer's way of saying: none)
    length: Length = 2048,
    windows: Windows = None,
    bucket: Annotated[
        int | None, typer.Option(min=1, help="Also by position in the window, so many tokens together.")
    ] = None,
    weights: Annotated[
        list[str], typer.Option(help="auto, exact, bf16, int8, int4; repeat it to compare.")
    ] = ["auto"],  # noqa: B006
    head: options.Head = "auto",
    kv_cache: Annotated[
        list[str],
        typer.Option("--kv-cache", help="auto, int8, int8-affine, int4, int8-original; also repeatable."),
    ] = ["auto"],  # noqa: B006
    json_file: JSONFile = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    offline: options.Offline = False,
) -> None:
    """Measure perplexity on texts, once for each form of weights and KV cache.

    +- after a perplexity is the standard error over such texts; changes are from the first form, with the
    standard error of the difference on the same tokens.
    """
    if not text:
        raise typer.BadParameter("Give a --text.")
    check_place(json_file)
    from rich.console import Console
    from tqdm import tqdm

    from qwenkit.eval import perplexity as measure
    from qwenkit.eval import read_windows

    name = chosen_model(model, model_option)
    state: State = ctx.obj
    results: list[dict[str, Any]] = []
    first: dict[Path, Any] = {}
    for form, cache in product(weights, kv_cache):
        loaded: Any = state.load(
            name, device=device, dtype=dtype, offline=offline, weights=form, head=head, kv_cache=cache
        )
        for path in text:
            found = read_windows([path], loaded.tokenizer, length=length, limit=windows)
            total = sum(len(window.ids) for window in found)
            with tqdm(
                total=total, desc=f"{form}, {cache}, {path.name}", unit="token", leave=False, disable=None
            ) as bar:
                result = measure(loaded, found, progress=bar.update)
            change, change_error = result.change_from(first.setdefault(path, result))
            results.append(
                {
                    "model": loaded.name,
                    "weights": form,
                    "kv_cache": cache,
                    "text": str(path),
                    "windows": len(found),
                    "length": length,
                    "tokens": result.tokens,
                    "perplexity": result.value,
                    "loss": result.loss,
                    "error": result.error,
                    "change": change,
                    "change_error": change_error,
                    "buckets": result.buckets(bucket) if bucket else [],
                }
            )
        del loaded
    Console().print(_table(results))
    if json_file is not None:
        write_json(json_file, results)


def _table(results: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("weights", "KV cache", "text"):
        table.add_column(heading)
    for heading in ("tokens", "perplexity", "+-", "change"):
        table.add_column(heading, justify="right")
    places = sorted({start for row in results for start, *_ in row["buckets"]})
    for place in places:
        table.add_column(f"from {place}", justify="right")
    texts = {row["text"] for row in results}
    for n, row in enumerate(results):
        buckets = {start: f"{exp(loss):.3f}" for start, _, loss in row["buckets"]}
        table.add_row(
            row["weights"],
            row["kv_cache"],
            Path(row["text"]).name,
            str(row["tokens"]),
            f"{row['perplexity']:.3f}",
            f"{row['error']:.1%}",
            "" if n < len(texts) else f"{row['change']:+.2%} +-{row['change_error']:.2%}",
            *(buckets.get(place, "") for place in places),
        )
    return table
