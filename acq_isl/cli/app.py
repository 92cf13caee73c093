"""The command line, put together from its topics, and the one place where errors become sentences."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import NoReturn

import typer
from rich.markup import escape

from acq_isl.cli import (
    affine,
    audit,
    build,
    calibrate,
    engines,
    looks,
    models,
    predict,
    rules,
    run,
    serve,
    sim,
    train,
    view,
)
from acq_isl.cli.console import err, show_error
from acq_isl.errors import AcqIslError

_PATIENCE_S = 5.0

cli = typer.Typer(
    name="acq-isl",
    help="See fluorescence labels that were never stained, while acquiring.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
TOPICS = {
    "At the microscope": (run, rules, affine, view, sim),
    "What was recorded": (predict, audit),
    "Engines": (serve, engines, build),
    "Models": (models, train, calibrate, looks),
}
for title, topics in TOPICS.items():
    for topic in topics:
        for command in (*topic.commands.registered_commands, *topic.commands.registered_groups):
            command.rich_help_panel = title
        cli.add_typer(topic.commands)


def main() -> NoReturn:
    """Entry point: every failure is a sentence and a non-zero exit code, never a traceback by default."""
    started = time.monotonic()
    try:
        cli()
        code = 0
    except AcqIslError as error:
        show_error(error, time.monotonic() - started)
        code = 1
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    # At its end Python waits for threads, and a user's function in one of them may never return.
    threading.Thread(target=_insist, args=(code,), name="acq-isl exit", daemon=True).start()
    sys.exit(code)


def _insist(code: int) -> None:
    """End the process a while after its main thread, though others hang; without any this ends with it."""
    threading.main_thread().join()
    time.sleep(_PATIENCE_S)
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if not thread.daemon and thread is not threading.main_thread() and frame is not None:
            where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
            err.print(f"[yellow]note[/] {escape(thread.name)} did not end; it was left at {escape(where)}")
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
