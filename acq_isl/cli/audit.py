"""Commands about runs that are over: can they be believed, and what would other rules have done."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from acq_isl.cli.console import configure_logging, out, show_table
from acq_isl.cli.serve import Backend, Connect, Keys, ModelFiles, Threads, predicting_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acq_isl.session.verify import Finding

commands = typer.Typer()
_COLORS = {"holds": "green", "differs": "red bold", "not verified": "yellow"}
_Run = Annotated[Path, typer.Argument(help="Run folder.")]


@commands.command()
def verify(
    folder: _Run,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Also predict again from the measured stacks.")
    ] = False,
    model: ModelFiles = None,
    connect: Connect = None,
    keys: Keys = None,
    threads: Threads = None,
    backend: Backend = "auto",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens inside.")] = False,
) -> None:
    """Check a run: nothing that its ledger vouches for was changed, and every decision comes out again.

    Exit code 0 if nothing differs, else 1. What cannot be checked is said, and does not count.
    """
    from acq_isl.session.verify import verify_run

    configure_logging(verbose)
    with ExitStack() as opened:
        models = None
        if pixels:
            models = opened.enter_context(predicting_for(folder, model, connect, keys, (threads, backend)))
        findings = verify_run(folder, tuple(model or ()), models)
    _show_findings(findings)
    if any(finding.state == "differs" for finding in findings):
        raise typer.Exit(1)


def _show_findings(findings: Sequence[Finding]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("part", "", "found"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        table.add_row(finding.part, f"[{_COLORS[finding.state]}]{finding.state}[/]", escape(finding.text))
    show_table(table)
    off = sum(finding.state == "differs" for finding in findings)
    unsure = sum(finding.state == "not verified" for finding in findings)
    words = f"[red bold]{off} things differ[/]" if off else "[green]nothing differs[/]"
    out.print(words + (f"; {unsure} could not be verified" if unsure else ""))


@commands.command()
def replay(
    folder: _Run,
    model: ModelFiles = None,
    connect: Connect = None,
    keys: Keys = None,
    threads: Threads = None,
    backend: Backend = "auto",
    keep: Annotated[bool, typer.Option(help="Leave the stacks in the spool.", hidden=True)] = False,
) -> None:
    """As 'recover', which does more, of a spool only: predict what waits there."""
    from acq_isl.cli.serve import predict_waiting

    out.print("[yellow]mind[/] 'acq-isl recover RUN' also predicts what is measured and writes the report")
    predict_waiting(folder, predicting_for(folder, model, connect, keys, (threads, backend)), keep)
