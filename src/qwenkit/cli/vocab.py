"""`qwenkit vocab`: teach a tokenizer new words, and give the model rows for them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwenkit.cli import options
from qwenkit.cli.loading import State


def vocab(
    ctx: typer.Context,
    words: Annotated[Path, typer.Argument(help="UTF-8 lines `word<TAB>count`; the count may be left out.")],
    model_option: options.ModelOption = None,
    to: Annotated[
        Path | None, typer.Option(help="Write a checkpoint with the longer vocabulary into this new folder.")
    ] = None,
    ranks: Annotated[
        Path | None, typer.Option(help="Write the new tokens alone, in the format of qwen.tiktoken.")
    ] = None,
    start_id: Annotated[
        int | None, typer.Option(help="First id to use, instead of the first free one.")
    ] = None,
    offline: options.Offline = False,
) -> None:
    """Add words to a vocabulary, so that each becomes one token.

    Prints the new ids. With --to the model gets them too: spare rows of its matrices are used first, and
    each new row starts as the mean of the tokens that the word was made of. Train before use.
    """
    from qwenkit.text import extend

    state: State = ctx.obj
    checkpoint = state.open(model_option, offline=offline)
    tokenizer = checkpoint.tokenizer()
    learned = extend.learn_merges(tokenizer, extend.read_words(words), start_id=start_id)
    for word, why in learned.skipped.items():
        typer.echo(f"skipped {word!r}: {why}", err=True)
    for token, new_id in learned.tokens.items():
        typer.echo(f"{new_id}\t{token.decode('utf-8', 'backslashreplace')}")
    if ranks is not None:
        learned.save(ranks)
        typer.echo(f"{len(learned.tokens)} new tokens written to {ranks}", err=True)
    if to is not None:
        from qwenkit.checkpoint import resize_vocabulary, write_checkpoint

        longer = tokenizer.with_tokens(learned.tokens)
        model = checkpoint.load_model(dtype=checkpoint.dtype)
        before = model.shape.vocab_size
        resize_vocabulary(model, len(longer), extend.made_of(tokenizer, learned.tokens))
        write_checkpoint(
            model,
            model.shape,
            longer,
            to,
            layout="qwen-v1" if checkpoint.config.architecture == "qwen" else "qwen2",
            dtype=checkpoint.dtype,
            generation=checkpoint.generation,
        )
        rows = model.shape.vocab_size
        grown = "spare rows sufficed" if rows == before else f"matrices grew from {before} to {rows} rows"
        typer.echo(f"{len(learned.tokens)} new tokens; {grown}; written to {to}", err=True)
