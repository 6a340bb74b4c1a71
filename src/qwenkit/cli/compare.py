"""`qwenkit compare`: how far the predictions of two checkpoints lie apart on the same text."""

from __future__ import annotations

from dataclasses import asdict
from math import exp
from typing import Annotated, Any

import typer

from qwenkit.cli import options
from qwenkit.cli.loading import State
from qwenkit.cli.perplexity import JSONFile, Length, Texts, Windows
from qwenkit.cli.result_file import check_place, write_json

_CACHE = "Its keys and values: auto, int8, int8-affine, int4, int8-original."
_WEIGHTS = "How its weights are held: auto, exact, bf16, int8, int4."


def compare(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help="The checkpoint to measure against.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The one to measure; may be A in another form.")],
    text: Texts = [],  # noqa: B006
    length: Length = 2048,
    windows: Windows = None,
    weights_a: Annotated[str, typer.Option(help=_WEIGHTS)] = "auto",
    weights_b: Annotated[str, typer.Option(help=_WEIGHTS)] = "auto",
    kv_cache_a: Annotated[
        str, typer.Option("--kv-cache-a", help="auto, int8, int8-affine, int4, int8-original.")
    ] = "auto",
    kv_cache_b: Annotated[str, typer.Option("--kv-cache-b", help="The same for B.")] = "auto",
    json_file: JSONFile = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    offline: options.Offline = False,
) -> None:
    """Compare two checkpoints: KL divergence of B from A and how often both find the same token likeliest.

    Both are loaded at once.
    """
    if not text:
        raise typer.BadParameter("Give a --text.")
    check_place(json_file)
    from tqdm import tqdm

    from qwenkit.eval import compare as measure
    from qwenkit.eval import read_windows

    state: State = ctx.obj
    common = {"device": device, "dtype": dtype, "offline": offline}
    first: Any = state.load(a, weights=weights_a, kv_cache=kv_cache_a, **common)
    second: Any = state.load(b, weights=weights_b, kv_cache=kv_cache_b, **common)
    found = read_windows(text, first.tokenizer, length=length, limit=windows)
    with tqdm(total=sum(len(window.ids) for window in found), unit="token", leave=False, disable=None) as bar:
        result = measure(first, second, found, progress=bar.update)
    typer.echo(
        f"tokens               {result.tokens}\n"
        f"KL divergence        mean {result.mean:.5f}, median {result.median:.5f}, "
        f"99 of 100 below {result.p99:.4f}, largest {result.largest:.3f} nats\n"
        f"same likeliest token {result.top1:.2%}\n"
        f"perplexity           A {exp(result.loss_a):.4f}, B {exp(result.loss_b):.4f} "
        f"({exp(result.loss_b - result.loss_a) - 1:+.2%})"
    )
    if json_file is not None:
        about = {"a": a, "b": b, "texts": [str(path) for path in text], "length": length}
        write_json(json_file, {**about, **asdict(result)})
