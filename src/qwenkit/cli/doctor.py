"""`qwenkit doctor`: what is installed, what would run and why, and what is wrong with a remedy."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

import qwenkit
from qwenkit.cli import options
from qwenkit.cli.loading import State, chosen_model

if TYPE_CHECKING:
    from qwenkit.cli.checks import Finding

_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "problem": "bold red"}


def doctor(
    ctx: typer.Context,
    model: options.ModelArgument = None,
    model_option: options.ModelOption = None,
    network: Annotated[
        bool, typer.Option("--network", help="Also ask whether the model hubs answer.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the hubs.")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of findings.")] = False,
) -> None:
    """Check the installation, the machine and a model.

    Says what would run and why, and what to do about problems. Nothing is downloaded. Exit code 1 means
    that a problem stops qwenkit.
    """
    state: State = ctx.obj
    findings = examine(chosen_model(model, model_option), state, timeout if network else None)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        show(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def examine(name: str | None, state: State, network_seconds: float | None) -> list[Finding]:
    """All checks in the order of a reader's questions; after a broken torch only what needs none."""
    import importlib.metadata

    from qwenkit.cli import checks
    from qwenkit.cli.chat import history_file

    findings = [checks.Finding("qwenkit", "ok", qwenkit.__version__), *checks.python()]
    installed = list(checks.packages(importlib.metadata.requires("qwenkit") or []))
    findings += [*installed, *checks.hardware()]
    if not any(finding.status == "problem" for finding in installed):
        about_model, checkpoint = checks.model(name, state.open)
        findings += [*checks.gpu(), *about_model, *checks.running(checkpoint), *checks.cache_folder()]
        if network_seconds is not None:
            findings += checks.hubs(network_seconds, _addresses())
    return [*findings, *checks.kept_history(history_file()), *checks.environment()]


def _addresses() -> dict[str, str]:
    import os

    return {
        "Hugging Face": os.environ.get("HF_ENDPOINT", "https://huggingface.co"),
        "ModelScope": os.environ.get("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn"),
    }


def show(findings: list[Finding]) -> None:
    """One line a finding, remedies below, a verdict at the end."""
    from rich.text import Text

    from qwenkit.cli.terminal import print_table, printable

    rows = []
    for finding in findings:
        text = Text(printable(finding.text))
        if finding.remedy:
            text.append(f"\n{printable(finding.remedy)}", style="bold")
        rows.append((Text(finding.status, style=_STYLES[finding.status]), Text(finding.topic), text))
    problems = sum(finding.status == "problem" for finding in findings)
    if problems:
        verdict = Text(f"{problems} to solve, marked 'problem'.", style="bold red")
    else:
        verdict = Text("Everything qwenkit needs is here.", style="green")
    print_table(rows, [verdict])
