"""`qwenkit pull`: bring a model to this machine and say where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwenkit.cli.options import Offline


def pull(
    name: Annotated[
        str,
        typer.Argument(
            help="org/name, org/name@revision, org/name:q4_k_m, or a demo model (demo, demo-1.5b)."
        ),
    ],
    source: Annotated[str, typer.Option(help="auto, huggingface or modelscope.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    to: Annotated[
        Path | None, typer.Option(help="Put plain files into this folder, not into the hub's cache.")
    ] = None,
    offline: Offline = False,
) -> None:
    """Fetch a model from a hub, check every file against the hub's hash and print its path."""
    from qwenkit.checkpoint import DEMOS, locate
    from qwenkit.checkpoint.sources.hub import check_source
    from qwenkit.checkpoint.sources.hub import pull as pull_model
    from qwenkit.core import RequestError

    if name in DEMOS:
        given = {"--source": source != "auto", "--revision": revision is not None, "--to": to is not None}
        if any(given.values()):
            raise RequestError(
                f"{', '.join(o for o, is_set in given.items() if is_set)} cannot be used with {name}.",
                "Leave them out, or pull a model by its hub name.",
            )
        typer.echo(locate(name, offline=offline).path)
        return
    path = pull_model(name, source=check_source(source), revision=revision, local_dir=to, offline=offline)
    typer.echo(path)
