"""Where the command line writes to; nothing else configures logging."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.table import Table

from acq_isl.errors import AcqIslError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def show_table(table: Table) -> None:
    """Print a table no wider than the terminal; plain lines are left for the terminal to break."""
    out.print(table, soft_wrap=False)


def counted(number: int, noun: str) -> str:
    """Such as ``1 stack`` and ``2 stacks``."""
    return f"{number} {noun}{'s' * (number != 1)}"


Advance = Callable[[str, int, int, str], None]
"""Told a phase, how many of how many are done, and a word about it."""


@contextmanager
def progress_bars(
    titles: Mapping[str, str], time_column: ProgressColumn, speed_over_s: float = 30.0
) -> Iterator[Advance]:
    """One bar for each phase that has begun, in the order of beginning; speed is that of the last seconds."""
    columns = (TextColumn("{task.description:>22}"), BarColumn(), MofNCompleteColumn(), time_column)
    text = TextColumn("{task.fields[text]}")
    with Progress(*columns, text, console=out, speed_estimate_period=speed_over_s) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(phase: str, done: int, total: int, word: str) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(titles[phase], total=total, text="")
            bars.update(tasks[phase], completed=done, total=total, text=word)

        yield advance


def configure_logging(verbose: bool, level: int = logging.WARNING) -> None:
    """Log to standard error from ``level`` up, or everything if the user wants to see what happens inside."""
    handler = RichHandler(console=err, show_path=False, show_time=verbose)
    logging.basicConfig(
        level=logging.DEBUG if verbose else level, format="%(message)s", handlers=[handler], force=True
    )
    logging.captureWarnings(True)


def show_error(error: AcqIslError, after_s: float) -> None:
    """A failure as sentences: what, wanted, got, to fix, and what was added on its way."""
    err.print(f"[red bold]stopped after {after_s:.0f} s[/] {escape(error.what)}")
    for name, value in (("wanted", error.wanted), ("got", error.got), ("to fix", error.fix)):
        if value:
            err.print(f"  {name:>6}: {escape(value)}")
    show_notes(error)


def show_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        err.print(f"  {escape(note)}")
