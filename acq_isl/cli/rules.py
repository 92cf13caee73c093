"""Rules of an experiment: explained and checked before anybody runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from acq_isl.cli.console import out, show_table

if TYPE_CHECKING:
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.rules.label_names import Labels
    from acq_isl.session.explain import Cost

commands = typer.Typer()
_CONTRADICTORY = 2


@commands.command()
def explain(experiment: Annotated[Path, typer.Argument(help="Experiment file (.yaml).")]) -> None:
    """Say every rule of an experiment in plain words, what is odd in it, and what it costs at worst.

    Nothing is opened or moved. Exit codes: 0, with or without remarks; 2 if a rule contradicts itself or can
    never act, so that no run is started; 1 if the file cannot be read.
    """
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.session.explain import explain as explain_rules
    from acq_isl.session.explain import plan_without_scope

    loaded = Experiment.from_yaml(experiment)
    labels, note = _labels(loaded)
    found = explain_rules(loaded, plan_without_scope(loaded), labels)
    for sentence in found.sentences:
        out.print(escape(sentence))
    _show_costs(found.costs)
    if note:
        out.print(f"[yellow]mind[/] {escape(note)}")
    marks = {"error": "[red bold]wrong[/]", "warning": "[yellow]mind[/]"}
    for remark in found.lints:
        out.print(f"{marks[remark.level]} {escape(str(remark))}")
    if any(remark.level == "error" for remark in found.lints):
        raise typer.Exit(_CONTRADICTORY)


def _labels(experiment: Experiment) -> tuple[Labels | None, str]:
    """What the models of an experiment predict, or why that is not known."""
    from acq_isl.errors import ModelError
    from acq_isl.experiment.experiment import LocalEngine
    from acq_isl.session.preflight import local_labels

    if not isinstance(experiment.engine, LocalEngine):
        return None, "labels were not checked: the engine is elsewhere; 'acq-isl run --dry-run' asks it"
    try:
        return local_labels(experiment), ""
    except ModelError as error:
        return None, f"labels were not checked: {error}"


def _show_costs(costs: tuple[Cost, ...]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("light at worst", "channel", "ms per field", "times", "s in all"):
        table.add_column(title, justify="left" if title in ("light at worst", "channel") else "right")
    for cost in costs:
        table.add_row(
            escape(cost.rule),
            escape(cost.channel),
            f"{cost.ms_per_field:g}",
            str(cost.times),
            f"{cost.total_s:.2f}",
        )
    show_table(table)
    total = sum(cost.total_s for cost in costs)
    out.print(f"in all at most {total:.1f} s of exposure, and so much time at least; moves come on top")
