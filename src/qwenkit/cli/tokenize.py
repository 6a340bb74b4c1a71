"""`qwenkit tokenize`: how text becomes tokens, and back."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated

import typer

from qwenkit.cli import options
from qwenkit.cli.loading import State, chosen_model
from qwenkit.cli.terminal import ReplyWriter, is_terminal, piped_text, printable

if TYPE_CHECKING:
    from qwenkit.text import Tokenizer

_COLOURS = ("on color(24)", "on color(58)", "on color(53)", "on color(22)", "on color(94)")


def tokenize(
    ctx: typer.Context,
    model: options.ModelArgument = None,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="Text to split; else stdin.", show_default=False)
    ] = None,
    model_option: options.ModelOption = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The same as TEXT.")] = None,
    decode: Annotated[str | None, typer.Option(help='Token ids to turn into text, as in "9707 11".')] = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print the ids alone, in one line.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Print the number of tokens alone.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON list of ids, texts and bytes.")
    ] = False,
    parse_special: Annotated[
        bool,
        typer.Option("--parse-special", help="Read <|im_start|> and the like in the text as control tokens."),
    ] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="The whole chat prompt with the text as the user's question.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="System prompt for --chat.")] = None,
    offline: options.Offline = False,
) -> None:
    """Show the tokens of a text, or with --decode the text of tokens.

    At a terminal every token gets a colour; into a pipe one line each: id, tab, text as JSON string.
    """
    if sum((ids, count, as_json)) > 1:
        raise typer.BadParameter("Give one of --ids, --count and --json.")
    if text is not None and prompt is not None:
        raise typer.BadParameter("Give TEXT or --prompt, not both.")
    if chat and parse_special:
        raise typer.BadParameter("--chat makes the control tokens itself; leave out --parse-special.")
    name = chosen_model(model, model_option)
    state: State = ctx.obj
    if decode is not None:
        if text is not None or prompt is not None:
            raise typer.BadParameter("Give a text or --decode, not both.")
        tokens = token_ids(decode)
        writer = ReplyWriter()
        writer.write(state.open(name, offline=offline).tokenizer().decode(tokens))
        writer.finish()
        return
    given = text if text is not None else prompt
    if given is None:
        given = piped_text(needed=True)
    if given is None:
        raise typer.BadParameter("There is no text: give MODEL TEXT, --prompt TEXT, or pipe text into stdin.")
    checkpoint = state.open(name, offline=offline)
    tokenizer: Tokenizer = checkpoint.tokenizer()
    if chat:
        from qwenkit.core import Message
        from qwenkit.text import chatml

        prompt_system = checkpoint.generation.default_system if system is None else system
        tokens = chatml.encode(tokenizer, [Message("system", prompt_system), Message("user", given)])
    else:
        tokens = tokenizer.encode(given, allow_special=parse_special)
    if count:
        typer.echo(len(tokens))
    elif ids:
        typer.echo(" ".join(map(str, tokens)))
    elif as_json:
        typer.echo(json.dumps([_described(tokenizer, token) for token in tokens], ensure_ascii=False))
    else:
        show(tokenizer, tokens)


def token_ids(text: str) -> list[int]:
    """Numbers separated by spaces or commas, in brackets or not. Raises typer.BadParameter."""
    words = re.split(r"[\s,]+", text.strip().strip("[]").strip())
    if not all(word.isascii() and word.isdigit() for word in words):
        bad = next(word for word in words if not (word.isascii() and word.isdigit()))
        raise typer.BadParameter(f"{bad!r} is no token id; write numbers, as in --decode '9707 11'.")
    return [int(word) for word in words]


def _described(tokenizer: Tokenizer, token: int) -> dict[str, object]:
    data = tokenizer.token_bytes(token)
    return {"id": token, "text": data.decode("utf-8", errors="replace"), "bytes": list(data)}


def piece(data: bytes) -> str:
    """Bytes of a token to look at: text where it is text, <0xE4> for a part of a character."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        shown = data.decode("utf-8", errors="surrogateescape")
        return re.sub("[\udc80-\udcff]", lambda found: f"<0x{ord(found[0]) - 0xDC00:02X}>", shown)


def show(tokenizer: Tokenizer, tokens: list[int]) -> None:
    """Coloured pieces and their ids at a terminal, one line a token elsewhere."""
    import sys

    pieces = [piece(tokenizer.token_bytes(token)) for token in tokens]
    if not is_terminal(sys.stdout):
        for token, shown in zip(tokens, pieces, strict=True):
            typer.echo(f"{token}\t{json.dumps(shown, ensure_ascii=False)}")
        return
    from rich.console import Console
    from rich.text import Text

    text, numbers = Text(), Text()
    for at, (token, shown) in enumerate(zip(tokens, pieces, strict=True)):
        style = f"bright_white {_COLOURS[at % len(_COLOURS)]}"
        text.append(printable(shown).replace("\t", "⇥").replace("\n", "⏎\n"), style)
        numbers.append(str(token), style)
        numbers.append(" ")
    console = Console(highlight=False)
    console.print(text)
    console.print(numbers)
    console.print(Text(f"{len(tokens)} tokens", style="dim"))
