"""The main job: run an experiment, or the demo, and say what came of it."""

from __future__ import annotations

from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import TimeElapsedColumn
from rich.table import Table

from acq_isl.cli.console import configure_logging, err, out, progress_bars, show_notes, show_table
from acq_isl.cli.sim import Faults, planted, seeded, show_scorecard
from acq_isl.cli.view import Port, Web, Window, installed, open_window, page

if TYPE_CHECKING:
    from acq_isl.events import Event
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.experiment.planning import Cycle
    from acq_isl.record import RunRecord
    from acq_isl.view.web.server import PageSettings

commands = typer.Typer()
_CTRL_C = 130
INCOMPLETE = 3
"""Exit code of a run in which less was predicted than required; docs/live.md lists all codes."""

Model = Annotated[str, typer.Option(help="Model file (.onnx), or 'demo', which ships with acq-isl.")]
Output = Annotated[Path | None, typer.Option(help="Where run folders are made.", show_default="acq-isl-runs")]
Engine = Annotated[
    str | None, typer.Option(help="'none' to predict nothing, or the address of a running 'acq-isl serve'.")
]
Resume = Annotated[
    Path | None,
    typer.Option(metavar="RUN", help="Go on with this run, which was cut off, in its own folder."),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens inside.")]


@commands.command()
def demo(
    specimen: Annotated[
        Path | None,
        typer.Option(help="Your own recording instead of simulated neurons: TIFF, NDTiff or OME-Zarr."),
    ] = None,
    pixel_size: Annotated[
        float | None, typer.Option(min=1e-3, help="Of the recording in um, if its files do not say.")
    ] = None,
    z_step: Annotated[
        float | None, typer.Option(min=1e-3, help="Of the recording in um, if its files do not say.")
    ] = None,
    transmitted: Annotated[
        str | None, typer.Option(help="Channel of transmitted light, if its name does not tell.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the simulated neurons.", show_default="1")] = None,
    output: Output = None,
    engine: Engine = None,
    fault: Faults = None,
    web: Annotated[
        bool | None,
        typer.Option("--web/--no-web", help="Serve a page that shows it live.", show_default="if installed"),
    ] = None,
    window: Window = False,
    verbose: Verbose = False,
) -> None:
    """Run the main job on the simulated microscope: overview, prediction, choice, revisit, report."""
    from acq_isl.experiment.experiment import Experiment, RecordedSpecimen
    from acq_isl.view.web.server import PageSettings

    text = (resources.files("acq_isl") / "templates" / "demo.yaml").read_text(encoding="utf-8")
    experiment = Experiment.from_text(text, "the demo")
    if specimen is not None:
        from acq_isl.cli.sim import on_recording

        recording = RecordedSpecimen(
            folder=specimen, pixel_size_um=pixel_size, z_step_um=z_step, transmitted=transmitted
        )
        experiment, found = on_recording(experiment, recording)
        out.print(f"{escape(str(specimen))}: {escape(found)}")
    if seed is not None:
        experiment = seeded(experiment, seed)
    experiment = planted(experiment, fault)
    served = PageSettings() if (installed() if web is None else web) else None
    adjusted = _adjusted(experiment, output, engine)
    if window:
        open_window(adjusted.output)
    _run(adjusted, sim=True, verbose=verbose, web=served)


@commands.command()
def run(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (.yaml).")],
    sim: Annotated[bool, typer.Option(help="On the simulated microscope, whatever the file names.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Check everything and show the plan; nothing moves.")] = False,
    output: Output = None,
    engine: Engine = None,
    fault: Faults = None,
    resume: Resume = None,
    web: Web = False,
    port: Port = None,
    window: Window = False,
    verbose: Verbose = False,
) -> None:
    """Run an experiment.

    Exit codes: 0 the run is complete; 1 it could not start, or ended early by an error; 2 wrong options;
    3 it ended in order, but fewer fields were predicted than the experiment requires; 129, 130, 143 somebody
    stopped it. Whatever was captured is in the run's folder, with a report.
    """
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.view.web.server import PageSettings

    loaded = planted(_adjusted(Experiment.from_yaml(experiment), output, engine), fault, sim=sim)
    if dry_run:
        show_plan(loaded, sim=sim)
    else:
        if window:
            open_window(loaded.output)
        served = PageSettings(port=port) if web else None
        _run(loaded, sim=sim, verbose=verbose, web=served, resume=resume)


@commands.command()
def schema(
    reference: Annotated[
        bool, typer.Option("--reference", help="A page with every key, in Markdown, instead.")
    ] = False,
) -> None:
    """Print the JSON schema of experiment files: editors complete keys and underline mistakes by it."""
    import json

    from acq_isl.experiment.reference import describe_schema, write_reference

    typer.echo(write_reference() if reference else json.dumps(describe_schema(), indent=1), nl=False)


@commands.command()
def doctor(
    experiment: Annotated[
        Path | None, typer.Argument(help="Whose microscope to look at.", show_default="simulated")
    ] = None,
    model: Model = "demo",
    output: Output = None,
) -> None:
    """Check that everything a run needs is there; every line comes with its fix."""
    from acq_isl.experiment.experiment import Experiment, SimulatedMicroscope
    from acq_isl.session.doctor import examine

    settings = SimulatedMicroscope() if experiment is None else Experiment.from_yaml(experiment).microscope
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]note[/]", "missing": "[red]missing[/]"}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("part", "", "found", "fix"):
        table.add_column(title, overflow="fold")
    states = []
    for finding in examine(settings, model, output or Path("acq-isl-runs")):
        states.append(finding.state)
        table.add_row(finding.part, marks[finding.state], escape(finding.found), escape(finding.fix))
    show_table(table)
    if "missing" in states:
        raise typer.Exit(1)


def _adjusted(experiment: Experiment, output: Path | None, engine: str | None) -> Experiment:
    from acq_isl.experiment.experiment import NoEngine, RemoteEngine

    changes: dict[str, object] = {}
    if output is not None:
        changes["output"] = output
    if engine is not None:
        changes["engine"] = NoEngine() if engine == "none" else RemoteEngine(address=engine)
    return experiment.model_copy(update=changes)


def _run(
    experiment: Experiment, *, sim: bool, verbose: bool, web: PageSettings | None, resume: Path | None = None
) -> None:
    from acq_isl.hooks import StoppedBySignal
    from acq_isl.session.runner import run as run_experiment

    configure_logging(verbose)
    with page(web) as show_page:
        try:
            bars = [_ProgressBars()]
            result = run_experiment(experiment, sim=sim, watch=show_page, views=bars, resume=resume)
        except KeyboardInterrupt as stop:
            err.print(f"[red bold]{escape(str(stop) or 'stopped by Ctrl-C')}[/]")
            show_notes(stop)
            raise typer.Exit(stop.exit_code if isinstance(stop, StoppedBySignal) else _CTRL_C) from None
        _summary(result.record)
        out.print(f"\nresults  {result.folder}")
        out.print(f"report   {result.report}")
    if result.stopped:
        raise typer.Exit(_CTRL_C)
    if result.record.shortfall:
        raise typer.Exit(INCOMPLETE)


def _summary(record: RunRecord) -> None:
    from acq_isl.report.report import headline

    color = "red bold" if record.shortfall else "bold"
    out.print(f"\n[{color}]{escape(headline(record))}[/]")
    for field in sorted((f for f in record.fields if f.chosen), key=lambda f: f.rank or 0):
        out.print(f"  {field.rank}. {escape(field.info.key.position)}  {escape(field.reason)}")
    counts = record.counts
    lost = "[green]none lost[/]" if counts.lost == 0 else f"[red bold]{counts.lost} LOST[/]"
    out.print(
        f"slices: {counts.captured} captured, {counts.predicted} predicted, {counts.refused} refused, "
        f"{counts.spooled} not predicted, {lost}"
    )
    if record.scorecard is not None:
        show_scorecard(record.scorecard)
    for warning in record.warnings:
        out.print(f"[yellow]note[/] {escape(warning)}")


class _ProgressBars:
    """A `RunView`: one bar for each phase of the run."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def setup(self) -> None:
        titles = {
            "overview": "imaging without stain",
            "predict": "predicting labels",
            "revisit": "fluorescence",
        }
        self._advance = self._open.enter_context(progress_bars(titles, TimeElapsedColumn()))

    def handle(self, event: Event) -> None:
        from acq_isl.events import Step

        if isinstance(event, Step):
            self._advance(event.phase, event.done, event.total, event.text)

    def close(self) -> None:
        self._open.close()


def show_plan(experiment: Experiment, *, sim: bool) -> None:
    """Check an experiment against the microscope and print its stacks."""
    from acq_isl.hooks import open_microscope
    from acq_isl.session.engine import ask_server
    from acq_isl.session.preflight import camera_of, prepare, simulated

    experiment = simulated(experiment) if sim else experiment
    with open_microscope(experiment.microscope) as scope:
        plan, doubts = prepare(experiment, scope)
        doubts += ask_server(experiment, plan, camera_of(scope))
        core = scope.core
        size = core.get_image_width() * core.get_image_height() * core.get_bytes_per_pixel()
        out.print(f"{escape(scope.description)}: nothing was moved")
    _table(plan, size)
    for doubt in doubts:
        out.print(f"[yellow]note[/] {escape(doubt)}")


def _table(plan: tuple[Cycle, ...], bytes_per_slice: int) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("time", "position", "channel", "x um", "y um", "z um", "slices", "exposure ms"):
        table.add_column(title, justify="right")
    slices, exposed_ms = 0, 0.0
    for cycle in plan:
        for request in cycle.requests:
            z = request.z_um
            depth = f"{z[0]:g} to {z[-1]:g}" if len(z) > 1 else f"{z[0]:g}"
            place = (f"{request.x_um:.1f}", f"{request.y_um:.1f}", depth)
            name = (str(request.key.time), request.key.position, request.key.channel)
            table.add_row(*name, *place, str(len(z)), f"{request.exposure_ms:g}")
            slices += len(z)
            exposed_ms += len(z) * request.exposure_ms
    show_table(table)
    size = slices * bytes_per_slice / 2**20
    out.print(f"overview: {slices} slices, {size:.0f} MiB, {exposed_ms / 1e3:.1f} s of light")
