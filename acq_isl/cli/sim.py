"""``acq-isl sim``: the simulated microscope for Pycro-Manager, at a prompt or under somebody's own script.

Pycro-Manager's Python backend lives in the process that uses it, so there is no server to connect to:
the script comes to the microscope.
"""

from __future__ import annotations

import code
import logging
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from acq_isl.cli_faults import Faults
from acq_isl.errors import ScopeError
from acq_isl.experiment.experiment import RecordedSpecimen, SimulatedMicroscope, SyntheticSpecimen
from acq_isl.fault_text import parse_fault

_log = logging.getLogger(__name__)


def add_sim_command(cli: typer.Typer, out: Console, configure_logging: Callable[[bool], None]) -> None:
    """Add ``sim`` to the command line."""
    # What stands behind the script is the script's.
    settings = {"allow_interspersed_args": False}
    cli.command("sim", context_settings=settings)(_sim(out, configure_logging))


def _sim(out: Console, configure_logging: Callable[[bool], None]) -> Callable[..., None]:
    def command(
        script: Annotated[
            list[str] | None,
            typer.Argument(help="Your Python script and its arguments.", show_default="a Python prompt"),
        ] = None,
        specimen: Annotated[
            Path | None,
            typer.Option(help="Your own recording instead of simulated neurons: TIFF, NDTiff or OME-Zarr."),
        ] = None,
        seed: Annotated[int, typer.Option(help="Of the simulated neurons.")] = 1,
        camera: Annotated[tuple[int, int], typer.Option(help="Rows and columns of the camera.")] = (512, 512),
        fault: Faults = None,
        verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what happens inside.")] = False,
    ) -> None:
        """Start the simulated microscope: a prompt with it, or your own Pycro-Manager script on it."""
        configure_logging(verbose)
        source = RecordedSpecimen(folder=specimen) if specimen else SyntheticSpecimen(seed=seed)
        planted = tuple(map(parse_fault, fault or ()))
        microscope = SimulatedMicroscope(specimen=source, camera_px=camera, faults=planted)
        if script and not Path(script[0]).is_file():
            raise ScopeError(f"there is no script {script[0]}", fix="check the path")
        with _opened(microscope) as names:
            if script:
                _run_script(script)
            else:
                out.print(escape(_banner(names)), soft_wrap=True)
                _prompt(names)

    return command


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
