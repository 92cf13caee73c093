"""``acq-isl sim``: the simulated microscope for Pycro-Manager, at a prompt or under somebody's own script.

Pycro-Manager's Python backend lives in the process that uses it, so there is no server to connect to:
the script comes to the microscope.
"""

from __future__ import annotations

import code
import logging
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from acq_isl.cli.console import configure_logging, out, show_table
from acq_isl.errors import ExperimentError, ScopeError, StorageError

if TYPE_CHECKING:
    import useq

    from acq_isl.experiment.experiment import Experiment, RecordedSpecimen, SimulatedMicroscope
    from acq_isl.protocols import Engine
    from acq_isl.scorecard import Scorecard

commands = typer.Typer()

Faults = Annotated[
    list[str] | None,
    typer.Option("--fault", metavar="FAULT", help="Let something go wrong, such as focus-drift:2."),
]


def planted(experiment: Experiment, faults: Sequence[str] | None, *, sim: bool = True) -> Experiment:
    """The experiment with further faults; ExperimentError on a real microscope, or if one is misspelt."""
    from acq_isl.experiment.experiment import SimulatedMicroscope
    from acq_isl.experiment.faults import parse_fault

    if not faults:
        return experiment
    from acq_isl.session.preflight import simulated

    microscope = simulated(experiment).microscope if sim else experiment.microscope
    if not isinstance(microscope, SimulatedMicroscope):
        raise ExperimentError(
            "faults can be planted in a simulated microscope only", got=microscope.kind, fix="add --sim"
        )
    all_faults = (*microscope.faults, *map(parse_fault, faults))
    return experiment.model_copy(update={"microscope": microscope.model_copy(update={"faults": all_faults})})


def seeded(experiment: Experiment, seed: int) -> Experiment:
    """The experiment on other simulated cells; ExperimentError on a recording."""
    from acq_isl.experiment.experiment import EpithelialSpecimen, SimulatedMicroscope, SyntheticSpecimen

    scope, computed = experiment.microscope, (SyntheticSpecimen, EpithelialSpecimen)
    if not isinstance(scope, SimulatedMicroscope) or not isinstance(scope.specimen, computed):
        raise ExperimentError("a recording has no seed", fix="leave out --seed, or --specimen")
    specimen = scope.specimen.model_copy(update={"seed": seed})
    return experiment.model_copy(update={"microscope": scope.model_copy(update={"specimen": specimen})})


def faulty(engine: Engine, faults: Sequence[str] | None) -> Engine:
    """The engine, with its faults where some are named."""
    from acq_isl.experiment.faults import of_engine, parse_fault

    if not faults:
        return engine
    from acq_isl.sim.faulty_engine import FaultyEngine

    return FaultyEngine(engine, of_engine([parse_fault(text) for text in faults]))


_log = logging.getLogger(__name__)


@commands.command("sim", context_settings={"allow_interspersed_args": False})
def sim(
    script: Annotated[
        list[str] | None,
        typer.Argument(help="Your Python script and its arguments.", show_default="a Python prompt"),
    ] = None,
    specimen: Annotated[
        Path | None,
        typer.Option(help="Your own recording instead of simulated neurons: TIFF, NDTiff or OME-Zarr."),
    ] = None,
    kind: Annotated[
        Literal["neurons", "epithelial"], typer.Option(help="Of the simulated cells.")
    ] = "neurons",
    seed: Annotated[int, typer.Option(help="Of the simulated cells.")] = 1,
    camera: Annotated[
        tuple[int, int], typer.Option(min=16, max=33000, help="Rows and columns of the camera.")
    ] = (512, 512),
    fault: Faults = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens inside.")] = False,
) -> None:
    """Start the simulated microscope: a prompt with it, or your own Pycro-Manager script on it."""
    from acq_isl.experiment.experiment import (
        EpithelialSpecimen,
        RecordedSpecimen,
        SimulatedMicroscope,
        SyntheticSpecimen,
    )
    from acq_isl.experiment.faults import parse_fault

    configure_logging(verbose)
    computed = EpithelialSpecimen if kind == "epithelial" else SyntheticSpecimen
    source = RecordedSpecimen(folder=specimen) if specimen else computed(seed=seed)
    planted = tuple(map(parse_fault, fault or ()))
    microscope = SimulatedMicroscope(specimen=source, camera_px=camera, faults=planted)
    if script and not Path(script[0]).is_file():
        raise ScopeError(f"there is no script {script[0]}", fix="check the path")
    with _opened(microscope) as names:
        if script:
            _run_script(script)
        else:
            out.print(escape(_banner(names)))
            _prompt(names)


@contextmanager
def _opened(microscope: SimulatedMicroscope) -> Iterator[dict[str, Any]]:
    """The names that are ready at the prompt."""
    import numpy as np
    import pycromanager

    from acq_isl.hooks import open_microscope

    with open_microscope(microscope) as opened, _no_second_core(pycromanager):
        yield {
            "scope": opened.simulated,
            "core": opened.core,
            "Core": pycromanager.Core,
            "Acquisition": pycromanager.Acquisition,
            "multi_d_acquisition_events": pycromanager.multi_d_acquisition_events,
            "np": np,
            "description": opened.description,
        }


@contextmanager
def _no_second_core(pycromanager: Any) -> Iterator[None]:
    """Let a script that starts and stops its own core get this one."""
    real = {name: getattr(pycromanager, name) for name in ("start_headless", "stop_headless")}

    def instead(name: str) -> Callable[..., None]:
        def call(*args: object, **kwargs: object) -> None:
            _log.warning("%s() does nothing here: the simulated microscope runs already", name)

        return call

    for name in real:
        setattr(pycromanager, name, instead(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(pycromanager, name, function)


def _run_script(words: list[str]) -> None:
    """Run a script as Python itself does: with its arguments, and modules beside it importable."""
    before = (sys.argv, sys.path[0])
    sys.argv, sys.path[0] = list(words), str(Path(words[0]).resolve().parent)
    try:
        runpy.run_path(words[0], run_name="__main__")
    finally:
        sys.argv, sys.path[0] = before


def _banner(names: dict[str, Any]) -> str:
    core = names["core"]
    rows, columns = core.get_image_height(), core.get_image_width()
    presets = ", ".join(core.get_available_configs(core.get_channel_group()))
    return (
        f"{names['description']}: {columns} x {rows} pixels of {core.get_pixel_size_um():g} um\n"
        f"presets of {core.get_channel_group()}: {presets}\n"
        "ready: core, scope, Acquisition, multi_d_acquisition_events, np; "
        "scope.truth() shows what really lies there\n"
        "leave with exit()"
    )


def _prompt(names: dict[str, Any]) -> None:
    if find_spec("IPython") is not None:
        import_module("IPython").start_ipython(argv=["--no-banner"], user_ns=dict(names))
        return
    try:
        code.interact(banner="", local=dict(names), exitmsg="")
    except SystemExit:
        # exit() ends the prompt; the microscope is closed behind it.
        _log.debug("left the prompt")


_SMALLEST_PX, _LARGEST_PX = 16, 512  # of the demo camera; of a field that is drawn quickly
_EXPOSURE_MS = 50.0


def _camera_px(folder: Path, rows: int, columns: int) -> tuple[int, int]:
    """Of a camera for a recording; StorageError for images smaller than any."""
    if min(rows, columns) < _SMALLEST_PX:
        what, wanted = (
            f"the images of {folder} are too small for a camera",
            f"{_SMALLEST_PX} rows and columns",
        )
        raise StorageError(what, wanted=wanted, got=f"{rows} x {columns}", fix="give larger images")
    return min(rows, _LARGEST_PX), min(columns, _LARGEST_PX)


def on_recording(experiment: Experiment, settings: RecordedSpecimen) -> tuple[Experiment, str]:
    """The demo's experiment with the planes, channels and camera of a recording, and what that is in words.

    StorageError if the recording cannot be read, or something about it is not known.
    """
    import useq

    from acq_isl.experiment.experiment import OpticsSettings, SimulatedMicroscope
    from acq_isl.hooks.connect import recorded_specimen
    from acq_isl.rules.imaging import Imaging
    from acq_isl.sim.specimen.recorded import is_published

    specimen = recorded_specimen(settings)
    planes, rows, columns = specimen.transmitted.shape
    fluorescent = specimen.channels[1:]
    changes: dict[str, Any] = {
        "microscope": SimulatedMicroscope(
            specimen=settings, camera_px=_camera_px(settings.folder, rows, columns)
        ),
        "overview": _with_planes(experiment.overview, planes, specimen.z_step_um),
        "truth": {name: label.channel for name, label in specimen.labels.items() if name in experiment.truth},
        "triggers": tuple(
            trigger
            for trigger in experiment.triggers
            if not isinstance(trigger.do, Imaging) or set(trigger.do.channels) <= set(fluorescent)
        ),
        "revisit": None,
    }
    if fluorescent:
        channels = tuple(useq.Channel(config=name, exposure=_EXPOSURE_MS) for name in fluorescent)
        changes["revisit"] = useq.MDASequence(channels=channels)
    if not is_published(settings.folder):
        # How the light was made is not in the files.
        changes["optics"] = OpticsSettings()
    told = (
        f"{planes} planes of {columns} x {rows} pixels, {specimen.pixel_size_um:g} um each, "
        f"{specimen.z_step_um:g} um apart; fluorescence: {', '.join(fluorescent) or 'none'}"
    )
    return experiment.model_copy(update=changes), told


def _with_planes(overview: useq.MDASequence, planes: int, step_um: float) -> useq.MDASequence:
    import useq

    if planes == 1:
        return overview.replace(z_plan=None)
    return overview.replace(z_plan=useq.ZRangeAround(range=(planes - 1) * step_um, step=step_um))


def show_scorecard(card: Scorecard) -> None:
    """Print what the run was worth, held against the truth."""
    from acq_isl.scorecard import sentences

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for what, text in sentences(card):
        table.add_row(what, escape(text))
    out.print("\n[bold]scorecard[/], held against what is known of the specimen")
    show_table(table)
