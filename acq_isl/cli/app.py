"""The command line, put together from its topics, and the one place where errors become sentences."""

from __future__ import annotations

import sys
import time

import typer

from acq_isl.cli import build, engines, models, run, serve, sim, train, view
from acq_isl.cli.console import show_error
from acq_isl.errors import AcqIslError

cli = typer.Typer(
    name="acq-isl",
    help="See fluorescence labels that were never stained, while acquiring.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for topic in (run, view, sim, serve, engines, build, models, train):
    cli.add_typer(topic.commands)


def main() -> None:
    """Entry point: every failure is a sentence and a non-zero exit code, never a traceback by default."""
    started = time.monotonic()
    try:
        cli()
    except AcqIslError as error:
        show_error(error, time.monotonic() - started)
        sys.exit(1)
