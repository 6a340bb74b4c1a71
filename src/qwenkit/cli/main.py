"""The `qwenkit` command: its table of subcommands, and what an error or an interrupt becomes.

It knows the commands by name only; importing this module imports neither torch nor a hub library.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import qwenkit
from qwenkit.cli.bench import bench
from qwenkit.cli.chat import chat
from qwenkit.cli.compare import compare
from qwenkit.cli.convert import convert
from qwenkit.cli.doctor import doctor
from qwenkit.cli.generate import generate
from qwenkit.cli.info import info
from qwenkit.cli.loading import State
from qwenkit.cli.merge import merge
from qwenkit.cli.perplexity import perplexity
from qwenkit.cli.pull import pull
from qwenkit.cli.quantize import quantize
from qwenkit.cli.run_batch import run_batch
from qwenkit.cli.serve import serve
from qwenkit.cli.tokenize import tokenize
from qwenkit.cli.vocab import vocab
from qwenkit.cli.web import web
from qwenkit.core import QwenkitError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader left, which is no error worth a message


class Commands(TyperGroup):
    """Runs a command and turns its failure into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                # Commands report trimming from the completion, once for every answer.
                warnings.filterwarnings("ignore", message=r"The \d+ oldest of \d+ turns were left out")
                result = super().invoke(ctx)
                sys.stdout.flush()  # here, or a reader that left would be noticed only at interpreter exit
            return result
        except QwenkitError as error:
            report(error, debug=isinstance(ctx.obj, State) and ctx.obj.debug)
            raise typer.Exit(EXIT_ERROR) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except BrokenPipeError as error:
            _discard_stdout()
            raise typer.Exit(EXIT_BROKEN_PIPE) from error


def _show_warning(message: Warning | str, *_where: Any, **_options: Any) -> None:
    # The place in the source helps a programmer, not a person at a terminal.
    typer.secho(f"warning: {message}", fg="yellow", err=True)


def report(error: QwenkitError, *, debug: bool) -> None:
    """Write the problem and its remedy to stderr; the traceback too when debugging."""
    if debug:
        traceback.print_exception(error)
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(error.problem, err=True)
    if error.remedy:
        typer.echo(error.remedy, err=True)


def _discard_stdout() -> None:
    # The interpreter flushes stdout once more when it ends and would complain about the closed pipe.
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no file (a test, a notebook): nothing left to flush
        return


app = typer.Typer(
    cls=Commands,
    name="qwenkit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: half the start time, wraps paragraphs, reads well in a pipe
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Load, chat with and inspect Qwen checkpoints, with no remote code.",
    epilog="Without a MODEL, commands use $QWENKIT_MODEL, else a small demo model. Start with: qwenkit chat",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qwenkit {qwenkit.__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="QWENKIT_DEBUG", help="Show the Python traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    # Tests and embedding programs hand in their own State; everyone else gets the real one.
    state = ctx.obj if isinstance(ctx.obj, State) else State()
    state.debug = debug
    ctx.obj = state


for command in (
    chat,
    generate,
    pull,
    convert,
    merge,
    quantize,
    info,
    tokenize,
    doctor,
    vocab,
    bench,
    perplexity,
    compare,
    serve,
    web,
    run_batch,
):
    app.command()(command)


def main(argv: Sequence[str] | None = None, state: State | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    argv: arguments without the program name (default: those of the process); state: for programs that
    bring their own model loader. With neither, this is the whole process, and it ends here.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a character must not end the chat
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=None if argv is None else list(argv), prog_name="qwenkit", obj=state or State())
    except SystemExit as end:
        if argv is None and state is None and isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(code: int) -> NoReturn:
    """End the process as multiprocessing ends its own: threads, exit functions, and no more.

    Taking torch's thousand modules apart first would keep the user from the next prompt for half a second.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except OSError:  # what was not written is the interpreter's to report
        sys.exit(code)
    os._exit(code)
