"""`qwenkit chat`: talk to a model at the terminal, or ask once from a script."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenkit.cli import options
from qwenkit.cli.loading import ChatModel, State, chosen_model
from qwenkit.cli.terminal import ReplyWriter, is_terminal, loading_line, piped_text

if TYPE_CHECKING:
    from qwenkit.core import SamplingParams


def chat(
    ctx: typer.Context,
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Ask this once and print the reply.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt, instead of the checkpoint's own.")
    ] = None,
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
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    weights: options.Weights = "auto",
    head: options.Head = "auto",
    kv_cache: options.KVCache = None,
    cache_tokens: options.CacheTokens = None,
    draft_model: options.DraftModel = None,
    offline: options.Offline = False,
    raw: Annotated[bool, typer.Option("--raw", help="Show the reply as it comes, without markdown.")] = False,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Print the exact prompt, token by token, on stderr.")
    ] = False,
    quiet: options.Quiet = False,
) -> None:
    """Talk to a model.

    At a terminal this opens a conversation; :help there lists its commands. With --prompt, or text
    piped into stdin (after the prompt, if both), it answers once: stdout gets the reply alone, all
    else goes to stderr.
    """
    params = options.sampling_params(ctx)
    name = chosen_model(model, model_option)
    query = "\n\n".join(part for part in (prompt, piped_text(needed=prompt is None)) if part)
    if not query and (prompt is not None or not is_terminal(sys.stdin)):
        raise typer.BadParameter("There is nothing to ask: give --prompt TEXT, or pipe text into stdin.")
    state: State = ctx.obj
    with loading_line():
        loaded: ChatModel = state.load(name, **options.loading(ctx))
    if query:
        ask_once(loaded, query, system=system, params=params, show_prompt=show_prompt, quiet=quiet)
    else:
        converse(loaded, system=system, params=params, show_prompt=show_prompt, raw=raw)


def ask_once(
    model: ChatModel,
    query: str,
    *,
    system: str | None,
    params: SamplingParams,
    show_prompt: bool,
    quiet: bool,
) -> None:
    """Stream the reply to stdout; say on stderr what else there is to say."""
    from qwenkit.cli.status import cautions, summary

    if model.notice and not quiet:
        typer.echo(model.notice, err=True)
    if show_prompt:
        from qwenkit.cli.prompt_view import prompt_view

        typer.echo(prompt_view(model, query, [], system, None), err=True)
    writer = ReplyWriter()
    completion = None
    for delta in model.chat_stream(query, None, system, params=params):
        writer.write(delta.text)
        completion = delta.completion or completion
    writer.finish()
    if completion is None:
        return
    limit = params.with_defaults(model.generation.sampling).max_tokens
    window = model.generation.max_window_size
    for caution in cautions(completion, max_tokens=limit, max_window_size=window):
        typer.secho(f"warning: {caution.text}", fg="yellow", err=True)
    if not quiet:
        typer.secho(summary(completion), dim=True, err=True)


def converse(
    model: ChatModel, *, system: str | None, params: SamplingParams, show_prompt: bool, raw: bool
) -> None:
    """Open the interactive conversation."""
    from rich.console import Console

    from qwenkit.cli.conversation import Conversation
    from qwenkit.cli.line_editor import LineEditor
    from qwenkit.cli.repl import Repl
    from qwenkit.cli.settings import Settings

    notes = Console(stderr=True, highlight=False)
    repl = Repl(
        model,
        LineEditor(history_file()).read,
        screen=Console(highlight=False),
        notes=notes,
        settings=Settings(params),
        conversation=Conversation(system),
        markdown=not raw,
        show_prompt=show_prompt,
    )
    repl.run()


def history_file() -> Path | None:
    """Where typed lines are remembered: QWENKIT_HISTORY (empty: nowhere), else the user's state folder."""
    chosen = os.environ.get("QWENKIT_HISTORY")
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "qwenkit" / "chat_history"
