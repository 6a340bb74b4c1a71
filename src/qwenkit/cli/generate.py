"""`qwenkit generate`: continue a text, with no chat template around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qwenkit.cli import options
from qwenkit.cli.loading import ChatModel, State, chosen_model
from qwenkit.cli.terminal import ReplyWriter, decoded, loading_line, piped_text
from qwenkit.core import Completion, RequestError, SamplingParams, TokenLogprob


def generate(
    ctx: typer.Context,
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Text to continue.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="File with the text to continue.")] = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_tokens: options.MaxTokens = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    schema: options.Schema = None,
    regex: options.Regex = None,
    choice: options.Choices = None,
    json_object: options.JsonObject = False,
    n: Annotated[int, typer.Option("--n", help="Number of continuations; more than one needs --json.")] = 1,
    logprobs: Annotated[
        int | None, typer.Option(help="Log probabilities of this many likeliest tokens; needs --json.")
    ] = None,
    parse_special: Annotated[
        bool,
        typer.Option("--parse-special", help="Read <|im_start|> and the like in the text as control tokens."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the text.")
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
    """Continue a text.

    The text comes from --prompt, --file or stdin (one newline at the end of a file or stdin is not part
    of it). stdout gets the continuation alone, all else goes to stderr.
    """
    if (n > 1 or logprobs is not None) and not as_json:
        raise typer.BadParameter("--n above 1 and --logprobs need --json, which keeps the parts apart.")
    params = options.sampling_params(ctx)
    name = chosen_model(model, model_option)
    text = prompt_text(prompt, file)
    state: State = ctx.obj
    with loading_line():
        loaded: ChatModel = state.load(name, **options.loading(ctx))
    if loaded.notice and not quiet:
        typer.echo(loaded.notice, err=True)
    if as_json:
        whole = loaded.generate(text, params, parse_special=parse_special)
        typer.echo(json.dumps(as_plain(whole), ensure_ascii=False))
        completion: Completion | None = whole
    else:
        completion = _stream(loaded, text, params, parse_special)
    if completion is not None:
        _report(loaded, completion, params, quiet)


def prompt_text(prompt: str | None, file: Path | None) -> str:
    """The text of exactly one of the three sources. Raises typer.BadParameter or RequestError."""
    if prompt is not None and file is not None:
        raise typer.BadParameter("Give --prompt or --file, not both.")
    if prompt is not None:
        return prompt
    if file is not None:
        try:
            return decoded(file.read_bytes(), str(file))
        except OSError as error:
            raise RequestError(f"Cannot read {file}: {error.strerror}.", "Check the name.") from error
    piped = piped_text(needed=True)
    if piped is None:
        raise typer.BadParameter(
            "There is no text: give --prompt TEXT, --file FILE, or pipe text into stdin."
        )
    return piped


def _stream(model: ChatModel, text: str, params: SamplingParams, parse_special: bool) -> Completion | None:
    writer = ReplyWriter()
    completion = None
    for delta in model.generate_stream(text, params, parse_special=parse_special):
        writer.write(delta.text)
        completion = delta.completion or completion
    writer.finish()
    return completion


def _report(model: ChatModel, completion: Completion, params: SamplingParams, quiet: bool) -> None:
    from qwenkit.cli.status import summary

    if quiet:
        return
    text = summary(completion)
    if completion.finish_reason == "length":  # the usual end of a continuation, so a note and no warning
        limit = params.with_defaults(model.generation.sampling).max_tokens
        text += f" · ended at max_tokens={limit} or the end of the context"
    typer.secho(text, dim=True, err=True)


def as_plain(completion: Completion) -> dict[str, Any]:
    """A Completion as JSON values; token bytes are numbers, for they may be part of a character."""
    return {
        "choices": [
            {
                "text": choice.text,
                "token_ids": list(choice.token_ids),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                "logprobs": None if choice.logprobs is None else [_plain_logprob(t) for t in choice.logprobs],
            }
            for choice in completion.choices
        ],
        "usage": {
            "prompt_tokens": completion.usage.prompt_tokens,
            "completion_tokens": completion.usage.completion_tokens,
            "cached_tokens": completion.usage.cached_tokens,
        },
        "timings": {
            "queue_s": completion.timings.queue_s,
            "prefill_s": completion.timings.prefill_s,
            "decode_s": completion.timings.decode_s,
        },
    }


def _plain_logprob(token: TokenLogprob) -> dict[str, Any]:
    return {
        **_plain_token(token.token_id, token.token_bytes, token.logprob),
        "top": [_plain_token(*one) for one in token.top],
    }


def _plain_token(token_id: int, token_bytes: bytes, logprob: float) -> dict[str, Any]:
    text = token_bytes.decode("utf-8", errors="replace")
    return {"id": token_id, "text": text, "bytes": list(token_bytes), "logprob": logprob}
