"""Predict what was recorded before: files, folders and whole plates, here or on a cluster."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.progress import TimeRemainingColumn

from acq_isl.cli.console import Advance, configure_logging, err, out, progress_bars
from acq_isl.cli.run import INCOMPLETE
from acq_isl.cli.serve import Backend, Threads, Views
from acq_isl.errors import ExperimentError

if TYPE_CHECKING:
    from acq_isl.bulk.executors import Place
    from acq_isl.bulk.run import Summary
    from acq_isl.bulk.work import Chunk, Done, Job
    from acq_isl.stack import Modality

commands = typer.Typer()
_CTRL_C = 130
_SHOWN = 20
_LINE_EVERY_S = 60.0
_SPEED_OVER_S = 1800.0  # a chunk may take a minute

Data = Annotated[
    list[Path], typer.Argument(help="NDTiff, OME-Zarr, TIFF, Micro-Manager folders, ND2, CZI, LIF, ...")
]
Model = Annotated[str, typer.Option("--model", "-m", help="Model file (.onnx), or 'demo'.")]
Folder = Annotated[Path, typer.Option("--output", "-o", help="Folder for predictions and tables.")]
Form = Annotated[Literal["ome-zarr", "ome-tiff"], typer.Option("--format", help="Of the predictions.")]
Measure = Annotated[bool, typer.Option("--measure", help="Write tables of measurements and objects.")]
Gate = Annotated[
    Literal["refuse", "warn"],
    typer.Option(help="What becomes of stacks that look unlike the model's training set."),
]
Transmitted = Annotated[
    str | None, typer.Option(help="Channel of transmitted light, if its name does not tell.")
]
Light = Annotated[
    str | None,
    typer.Option(help="'phase contrast', 'DIC', 'brightfield': if the channel's name does not tell."),
]
Length = Annotated[float | None, typer.Option(min=1e-3, help="In um, if the files do not say.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes on this computer, with an engine each.")]
DaskAddress = Annotated[str | None, typer.Option(metavar="ADDRESS", help="A Dask cluster's scheduler.")]
RayAddress = Annotated[str | None, typer.Option(metavar="ADDRESS", help="A Ray cluster, or 'auto'.")]


@commands.command()
def predict(
    data: Data,
    model: Model,
    output: Folder,
    form: Form = "ome-zarr",
    measure: Measure = False,
    transmitted: Transmitted = None,
    light: Light = None,
    pixel_size: Length = None,
    z_step: Length = None,
    gate: Gate = "refuse",
    backend: Backend = "auto",
    threads: Threads = None,
    views: Views = 1,
    workers: Workers = 1,
    dask: DaskAddress = None,
    ray: RayAddress = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens inside.")] = False,
) -> None:
    """Predict stacks that were recorded before; made again after it was cut off, it does what is left.

    Exit codes: 0 everything is predicted; 1 it could not start, or ended early by an error; 2 wrong options;
    3 it ended in order, but some fields were refused or cannot be read, which are listed; 130 Ctrl-C.
    """
    from acq_isl.bulk.run import predict_stored

    configure_logging(verbose)
    place = _place(workers, dask, ray)
    job = _job(model, output, backend, threads if place is None else threads or 1, {
        "gate": gate, "transmitted": transmitted, "light": _light(light), "pixel_size_um": pixel_size,
        "z_step_um": z_step, "output": form, "measure": measure, "views": views,
    })  # fmt: skip
    out.print(f"{escape(job.settings.model)} with {escape(job.settings.engine)}")
    try:
        with ExitStack() as opened:
            progress = _Progress(opened)
            summary = predict_stored(data, job, place, begin=progress.begin, watch=progress.watch)
    except KeyboardInterrupt:
        err.print("[red bold]stopped by Ctrl-C[/]; made again, the command does what is left")
        raise typer.Exit(_CTRL_C) from None
    _show(summary, job)
    if not summary.complete:
        raise typer.Exit(INCOMPLETE)


def _light(text: str | None) -> Modality | None:
    match text:
        case None | "phase contrast" | "DIC" | "brightfield":
            return text
        case _:
            raise ExperimentError(
                f"there is no kind of transmitted light {text!r}",
                wanted="'phase contrast', 'DIC' or 'brightfield'",
                fix="correct --light, or leave it out",
            )


def _place(workers: int, dask: str | None, ray: str | None) -> Place | None:
    """Who does the work; None is this process."""
    from acq_isl.bulk.executors import Dask, Processes, Ray

    said = [
        *(["--workers"] if workers > 1 else []),
        *(["--dask"] if dask else []),
        *(["--ray"] if ray else []),
    ]
    if len(said) > 1:
        raise ExperimentError(f"only one of {' and '.join(said)} can do the work", fix="leave one out")
    if dask:
        return Dask(dask)
    if ray:
        return Ray(ray)
    return Processes(workers) if workers > 1 else None


def _job(model: str, folder: Path, backend: str, threads: int | None, changes: dict[str, object]) -> Job:
    """The job, with the very model and engine that all of it is done with: those of before, if it goes on."""
    from acq_isl.bulk.output import noted_settings
    from acq_isl.bulk.work import Job, Settings
    from acq_isl.engines import describe, resolve
    from acq_isl.engines.model_file import SHIPPED

    file = model if model in SHIPPED else str(Path(model).resolve())
    info = describe(file)
    before = noted_settings(folder).get("engine")
    engine = str(before) if before and backend == "auto" else resolve(file, backend, threads=threads)
    about = {
        "model": f"{info.manifest.name} {info.manifest.version}",
        "model_sha256": info.sha256,
        "engine": engine,
    }
    return Job(file, Settings.model_validate(about | changes), folder.resolve(), threads)


class _Progress:
    """One bar whose remaining time knows only of fields that are done in this call; without a terminal a line
    each minute."""

    def __init__(self, opened: ExitStack) -> None:
        self._opened = opened
        self._advance: Advance | None = None
        self._done = self._total = self._refused = self._failed = 0
        self._first_s = self._line_s = 0.0
        self._here = 0

    def begin(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        titles = {"predict": "predicting fields"}
        if out.is_terminal:
            column = TimeRemainingColumn(elapsed_when_finished=True)
            self._advance = self._opened.enter_context(progress_bars(titles, column, _SPEED_OVER_S))
            self._advance("predict", done, total, f"{done} done before" if done else "")
        elif done:
            out.print(f"{done} of {total} fields were done before")

    def watch(self, chunk: Chunk, done: Done) -> None:
        from acq_isl.bulk.work import Failed, Refused

        self._done += 1
        self._here += 1
        self._refused += isinstance(done.outcome, Refused)
        self._failed += isinstance(done.outcome, Failed)
        bad = f"  {self._refused} refused, {self._failed} failed" if self._refused + self._failed else ""
        if self._advance is not None:
            self._advance(
                "predict", self._done, self._total, f"{escape(chunk.group)} {escape(chunk.position)}{bad}"
            )
            return
        now = time.monotonic()
        if self._here == 1:  # until then engines were loaded, which says nothing of what is left
            self._first_s = self._line_s = now
        elif now - self._line_s >= _LINE_EVERY_S:
            self._line_s = now
            left_s = (self._total - self._done) * (now - self._first_s) / (self._here - 1)
            out.print(f"{self._done} of {self._total} fields, about {left_s / 60:.0f} min left{bad}")


def _show(summary: Summary, job: Job) -> None:
    before = f" ({summary.before} done before)" if summary.before else ""
    color = "bold" if summary.complete else "red bold"
    out.print(
        f"[{color}]{summary.predicted} fields predicted, {len(summary.refused)} refused, "
        f"{len(summary.failed)} failed[/]{before}"
    )
    for what, told in (("refused", summary.refused), ("failed", summary.failed)):
        for text in told[:_SHOWN]:
            out.print(f"[yellow]{what}[/] {escape(text)}")
        if len(told) > _SHOWN:
            out.print(f"[yellow]{what}[/] and {len(told) - _SHOWN} more, which are in fields.csv")
    if summary.pixel_sizes_um:
        sizes = ", ".join(f"{size:g}" for size in summary.pixel_sizes_um)
        out.print(f"[yellow]note[/] the fields have different pixel sizes: {sizes} um")
    out.print(f"results  {escape(str(job.out))}")
    for file in summary.files:
        out.print(f"table    {escape(str(file))}")
