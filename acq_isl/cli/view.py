"""Commands that show a run while it goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from acq_isl.cli.console import out
from acq_isl.errors import ExperimentError

if TYPE_CHECKING:
    from acq_isl.events import EventHandler
    from acq_isl.view.feed.source import FinishedRun
    from acq_isl.view.web.server import Announcement, PageSettings

commands = typer.Typer()

Web = Annotated[bool, typer.Option("--web/--no-web", help="Serve a page that shows the run live.")]
Port = Annotated[
    int | None,
    typer.Option(min=1, max=65535, help="Port of the page.", show_default="8765, or a free one if taken"),
]
Host = Annotated[str, typer.Option(help="Address the page listens at; 0.0.0.0 for other computers, too.")]
Window = Annotated[bool, typer.Option(help="Open a napari window on the run.")]
Tls = Annotated[
    tuple[Path, Path] | None,
    typer.Option(metavar="CERTIFICATE KEY", help="Certificate and private key (PEM), to serve https."),
]


def installed() -> bool:
    """Whether the extra [web] is there."""
    return all(find_spec(name) is not None for name in ("starlette", "uvicorn", "websockets"))


@commands.command()
def web(
    run: Annotated[
        Path,
        typer.Argument(help="Run folder, or a folder of runs: one that goes on, or else the newest."),
    ] = Path("acq-isl-runs"),
    host: Host = "127.0.0.1",
    port: Port = None,
    tls: Tls = None,
    announce: Annotated[Path | None, typer.Option(hidden=True)] = None,
    stop_with_stdin: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Serve the page of a run that goes on, or is over, until stopped with Ctrl-C."""
    from acq_isl.files import write_whole
    from acq_isl.view.web.server import PageSettings, serve_page

    def announced(where: Announcement) -> None:
        if announce is not None:
            write_whole(announce, where.model_dump_json())
            return
        if finished is None:
            _show(where, settings)
        else:
            out.print(f"{escape(str(folder))} is over; its page  {where.read}")
        out.print("stop with Ctrl-C")

    settings = PageSettings(host, port, *(tls or (None, None)))
    folder, finished = _find(run)
    serve_page(folder, settings, announced, with_parent=stop_with_stdin, finished=finished)


def _find(output: Path) -> tuple[Path, FinishedRun | None]:
    """The run to show: one that goes on, else the newest that is over."""
    from acq_isl.session.finished import finished_events, newest_run
    from acq_isl.view.feed.address import running_folder
    from acq_isl.view.feed.reader import answers
    from acq_isl.view.feed.source import FinishedRun

    try:
        folder = running_folder(output)
        if answers(folder):
            return folder, None
    except ExperimentError:
        folder = output
    folder = newest_run(folder)
    return folder, FinishedRun(finished_events(folder))


def _open_finished(folder: Path) -> FinishedRun | None:
    """The run that is over in a run folder; None if it is none, so that a window waits for one."""
    from acq_isl.session.finished import finished_events, is_run
    from acq_isl.view.feed.source import FinishedRun

    return FinishedRun(finished_events(folder)) if is_run(folder) else None


@commands.command()
def view(
    run: Annotated[
        Path, typer.Argument(help="Run folder, also of one that is over; or a folder whose runs to follow.")
    ] = Path("acq-isl-runs"),
) -> None:
    """Open a napari window on a run, in a process of its own."""
    from acq_isl.view.napari.window import view as show

    show(run, _open_finished)


def open_window(folder: Path) -> None:
    """Start ``acq-isl view`` beside a run that begins; AcqIslError if no window can be opened here."""
    from acq_isl.view.napari.window import check

    check()
    folder.mkdir(parents=True, exist_ok=True)
    # Its own process group: Ctrl-C stops the run, and the window stays.
    subprocess.Popen([sys.executable, "-m", "acq_isl", "view", str(folder)], start_new_session=True)


@contextmanager
def page(settings: PageSettings | None) -> Iterator[EventHandler]:
    """Serve a page beside a run; yields what must get the run's events. Nothing without settings.

    Afterwards the page stays until Enter is pressed, if somebody sits at the terminal.
    """
    from acq_isl.events import ignore_event

    if settings is None:
        yield ignore_event
        return

    from acq_isl.view.web.server import PageProcess

    def ready(where: Announcement | str) -> None:
        if isinstance(where, str):
            out.print(f"[yellow]note[/] {escape(where)}")
        else:
            _show(where, settings)

    with PageProcess(settings, ready) as process:
        yield process.handle
        if process.serving and sys.stdin is not None and sys.stdin.isatty():
            out.print("\nthe page stays open; press Enter to end")
            sys.stdin.readline()


def _show(where: Announcement, settings: PageSettings) -> None:
    out.print(f"live page         {where.operate}")
    out.print(f"only to look      {where.read}")
    if not settings.local and settings.certificate is None:
        out.print("[yellow]note[/] without --tls everybody on the way can read along, the token included")
