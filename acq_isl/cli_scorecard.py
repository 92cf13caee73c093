"""The grades of a simulated run on the screen."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from acq_isl.scorecard import Scorecard, sentences


def show_scorecard(out: Console, card: Scorecard) -> None:
    """Print what the run was worth, held against the truth."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for what, text in sentences(card):
        table.add_row(what, escape(text))
    out.print("\n[bold]scorecard[/], held against what is known of the specimen")
    out.print(table)
