"""The options that several commands share, and what they mean together: read from the command's context, by
their names, so that a command only has to declare them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from qwenkit.core import Grammar, RequestError, SamplingParams

_MODEL = "Path of a checkpoint folder or GGUF file, a hub name (org/name), or demo, demo-0.5b, demo-1.5b."

ModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help=_MODEL, show_default="$QWENKIT_MODEL, else demo")
]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="The same as MODEL.")]
Temperature = Annotated[
    float | None,
    typer.Option(help="0 always takes the likeliest token; higher is more varied."),
]
TopP = Annotated[
    float | None,
    typer.Option(help="Sample from the likeliest tokens of this total mass."),
]
TopK = Annotated[int | None, typer.Option(help="Sample from this many tokens; 0 is all.")]
MinP = Annotated[
    float | None,
    typer.Option(help="Drop tokens less likely than this share of the best."),
]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 discourages tokens already seen.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Most tokens to generate.")]
Seed = Annotated[int | None, typer.Option("--seed", "-s", help="Makes the answer repeatable.")]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="Text that ends the answer and is not part of it; may be repeated. A newline is $'\\n' in bash.",
    ),
]
Schema = Annotated[
    str | None,
    typer.Option(metavar="FILE|JSON", help="The answer is JSON that this schema accepts."),
]
Regex = Annotated[
    str | None, typer.Option(help="The answer matches this regular expression from end to end.")
]
Choices = Annotated[
    list[str] | None, typer.Option("--choice", help="The answer is one of these; repeat the option.")
]
JsonObject = Annotated[bool, typer.Option("--json-object", help="The answer is any JSON object.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")]
Weights = Annotated[
    str,
    typer.Option(
        help="auto (as stored), exact, bf16, or int8, int4 to round a 16-bit checkpoint at loading."
    ),
]
Head = Annotated[
    str, typer.Option(help="The output layer: auto (int8 with --weights int8 or int4), bf16, int8, int4.")
]
KVCache = Annotated[
    str | None,
    typer.Option(
        "--kv-cache", help="Keys and values: auto (as dtype), int8, int8-affine, int4 or int8-original."
    ),
]
CacheTokens = Annotated[
    int | None, typer.Option("--cache-tokens", help="Most tokens the KV cache holds; by memory if left out.")
]
DraftModel = Annotated[
    str | None,
    typer.Option("--draft-model", help="A smaller model of the same vocabulary: faster, the same text."),
]
Samples = Annotated[int, typer.Option(min=1, help="Most texts of the calibration.")]
Length = Annotated[int, typer.Option(min=1, help="Tokens each of them is cut to.")]
EvalTexts = Annotated[
    list[Path] | None, typer.Option(help="Measure on this file, not on built-in texts; may be repeated.")
]
MaxPplIncrease = Annotated[
    float, typer.Option(help="Percent of perplexity above which a quantized result has failed (exit 3).")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never use the network.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notices on stderr, only warnings and errors.")]


def sampling_params(ctx: typer.Context) -> SamplingParams:
    """SamplingParams of the options with the names of its fields; the checkpoint decides what is not given.

    Raises typer.BadParameter (exit 2) for a value out of range.
    """
    names = {field.name for field in fields(SamplingParams)} & ctx.params.keys()
    given = {name: ctx.params[name] for name in names if ctx.params[name] not in (None, [])}
    try:
        grammar = _grammar(ctx)
        return SamplingParams(**{**given, "stop": tuple(given.get("stop", ())), "grammar": grammar})
    except RequestError as error:
        raise typer.BadParameter(str(error)) from error


def _grammar(ctx: typer.Context) -> Grammar | None:
    """What --schema, --regex, --choice or --json-object ask for."""
    makers: dict[str, Callable[[Any], Grammar]] = {
        "schema": lambda given: Grammar.json_schema(_schema(given)),
        "regex": Grammar.regex,
        "choice": Grammar.choice,
        "json_object": lambda _: Grammar.json_object(),
    }
    given = [name for name in makers if ctx.params.get(name) not in (None, [], (), False)]
    if len(given) > 1:
        raise typer.BadParameter("Give one of --schema, --regex, --choice and --json-object.")
    return makers[given[0]](ctx.params[given[0]]) if given else None


def _schema(given: str) -> Any:
    """A schema written out, or the file it is in."""
    written = given.lstrip().startswith("{")
    try:
        return json.loads(given if written else Path(given).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"Cannot read {given}: {error.strerror}.", "Give a file, or JSON.") from error
    except (ValueError, RecursionError) as error:
        where = "The schema" if written else given
        raise RequestError(f"{where} is not JSON: {error}.", "Correct it.") from error


def loading(ctx: typer.Context) -> dict[str, Any]:
    """Keyword arguments of State.load, of the options above that say how a model is loaded."""
    names = ("device", "dtype", "weights", "head", "kv_cache", "cache_tokens", "draft_model", "offline")
    return {name: ctx.params[name] for name in names if ctx.params[name] is not None}
