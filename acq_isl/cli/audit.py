"""Commands about runs that are over: can they be believed, and what would other rules have done."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from acq_isl.cli.console import configure_logging, out, show_table
from acq_isl.cli.serve import Backend, Connect, Keys, ModelFiles, Threads, predict_waiting, predicting_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acq_isl.report.replay_page import ReplayPage
    from acq_isl.session.findings import Finding

commands = typer.Typer()
_COLORS = {"holds": "green", "differs": "red bold", "not verified": "yellow"}
_MOST_CHANGES = 40
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
    differ = f"{off} thing{'s differ' if off != 1 else ' differs'}"
    words = f"[red bold]{differ}[/]" if off else "[green]nothing differs[/]"
    out.print(words + (f"; {unsure} could not be verified" if unsure else ""))


@commands.command()
def replay(
    folder: _Run,
    rules: Annotated[
        Path | None,
        typer.Option(help="Experiment file, or one with nothing but choose, revisit, triggers, limits."),
    ] = None,
    model: ModelFiles = None,
    connect: Connect = None,
    keys: Keys = None,
    threads: Threads = None,
    backend: Backend = "auto",
    page: Annotated[
        Path | None,
        typer.Option(
            help="Where the picture is written.", show_default="RUN/replay.html, then replay_2.html"
        ),
    ] = None,
    keep: Annotated[bool, typer.Option(help="Leave the stacks in the spool.", hidden=True)] = False,
) -> None:
    """What other rules, or another model, would have done in a run: decisions, light, time, recall.

    The run is not changed. With --model or --connect its stacks are predicted again. Without --rules it is
    what it was before: 'recover', of a spool only.
    """
    predicting = predicting_for(folder, model, connect, keys, (threads, backend))
    if rules is None:
        out.print(
            "[yellow]note[/] 'acq-isl recover RUN' predicts what waits and what is measured; 'replay' is"
        )
        out.print("     for other rules now: acq-isl replay RUN --rules RULES.yaml")
        predict_waiting(folder, predicting, keep)
        return
    from acq_isl.report.replay_page import write_replay_page
    from acq_isl.session.replay import compare_rules
    from acq_isl.session.replay_words import make_page

    with predicting if model or connect else nullcontext() as models:
        shown = make_page(folder, rules, compare_rules(folder, rules, models))
    _show_page(shown)
    path = page or free_page(folder)
    write_replay_page(path, shown)
    out.print(f"page     {escape(str(path))}")


def free_page(folder: Path) -> Path:
    """Replays are compared with each other: none replaces the page of another."""
    names = chain(("replay.html",), (f"replay_{number}.html" for number in count(2)))
    return next(folder / name for name in names if not (folder / name).exists())


def _show_page(shown: ReplayPage) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("", "as run", "with these rules"):
        table.add_column(title, overflow="fold")
    for row in shown.table:
        table.add_row(*map(escape, row))
    show_table(table)
    changed = [row for row in shown.changes if row[0] != "kept"]
    for kind, rule, before, after in changed[:_MOST_CHANGES]:
        words = " -> ".join(filter(None, (before, after)))
        out.print(f"{kind:>7}  {escape(rule)}: {escape(words)}")
    if len(changed) > _MOST_CHANGES:
        out.print(f"{len(changed) - _MOST_CHANGES} more are on the page")
    for note in shown.notes:
        out.print(f"[yellow]note[/] {escape(note)}")
