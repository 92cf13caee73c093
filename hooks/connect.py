"""Open a microscope: a simulated one, a running Micro-Manager, or the core of an installed one."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, assert_never

from acq_isl.errors import ScopeError
from acq_isl.experiment.experiment import (
    EpithelialSpecimen,
    HeadlessMicroManager,
    MicroscopeSettings,
    RecordedSpecimen,
    RunningMicroManager,
    SimulatedMicroscope,
    SyntheticSpecimen,
)
from acq_isl.experiment.faults import of_scope
from acq_isl.experiment.simulated import (
    BrightfieldOptics,
    DICOptics,
    ObliqueOptics,
    PhaseContrastOptics,
    SimulatedOptics,
)
from acq_isl.rules.actions import Limits

if TYPE_CHECKING:
    from acq_isl import sim
    from acq_isl.sim.optics.illumination import Transmitted

log = logging.getLogger(__name__)

_ANSWER_S = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class OpenMicroscope:
    """A core that answers."""

    core: Any
    """Micro-Manager's core with its snake_case methods."""
    description: str
    """For people, such as ``"simulated microscope, synthetic neurons (seed 1)"``."""
    simulated: sim.SimulatedScope | None = None
    """Which also knows the truth."""
    port: int = 4827
    """Of Micro-Manager's server; only the Java back end uses it."""
    reach: Limits = field(default_factory=Limits)
    """Travel of the stages, as far as the microscope says."""


@contextmanager
def open_microscope(settings: MicroscopeSettings) -> Iterator[OpenMicroscope]:
    """Open the microscope an experiment asks for and close what was started here.

    ScopeError if it cannot be reached or started, StorageError if a recorded specimen cannot be read.
    """
    match settings:
        case SimulatedMicroscope():
            with _simulated(settings) as scope:
                yield scope
        case RunningMicroManager(port=port):
            yield OpenMicroscope(_running_core(port), f"Micro-Manager on port {port}", port=port)
        case HeadlessMicroManager():
            with _headless(settings) as scope:
                yield scope
        case _:
            assert_never(settings)


@contextmanager
def _simulated(settings: SimulatedMicroscope) -> Iterator[OpenMicroscope]:
    from acq_isl import sim

    specimen: sim.Specimen
    own: dict[str, Any] = {}
    match settings.specimen:
        case SyntheticSpecimen(seed=seed, life=life, optics=optics):
            specimen = sim.SyntheticSpecimen(seed=seed, life=life, optics=transmitted_light(optics))
            what = f"synthetic neurons (seed {seed})"
        case EpithelialSpecimen(seed=seed, optics=optics) as asked:
            culture = sim.Monolayer(**asked.model_dump(include={"confluency", "cell_um", "mitotic", "dead"}))
            specimen = sim.EpithelialSpecimen(seed, transmitted_light(optics), culture)
            what = f"synthetic epithelial cells (seed {seed})"
        case RecordedSpecimen():
            specimen = recorded_specimen(settings.specimen)
            # One pixel of the camera is one of the recording, so that its counts come back unchanged.
            own["pixel_size_um"] = specimen.pixel_size_um
            what = f"specimen recorded in {settings.specimen.folder}"
        case _:
            assert_never(settings.specimen)
    chosen = sim.ScopeSettings(
        shape=settings.camera_px, time_scale=settings.time_scale, prepare_ahead=settings.prepare_ahead, **own
    )
    reach = Limits(x_um=chosen.x_limits_um, y_um=chosen.y_limits_um, z_um=chosen.z_limits_um)
    if settings.faults:
        what += f", faults planted: {', '.join(map(str, settings.faults))}"
    with sim.SimulatedScope(specimen, settings=chosen, faults=of_scope(settings.faults)) as scope:
        yield OpenMicroscope(scope.core, f"simulated microscope, {what}", simulated=scope, reach=reach)


def transmitted_light(settings: SimulatedOptics) -> Transmitted:
    """The optics that an experiment asks for, computed as finely as live images are."""
    from acq_isl.sim.optics.illumination import DIC, LIVE_PHASE_CONTRAST, Brightfield, Oblique
    from acq_isl.sim.optics.source import LIVE_GRID_UM_NA, Spectrum

    live: Transmitted
    match settings:
        case PhaseContrastOptics():
            live = LIVE_PHASE_CONTRAST
        case ObliqueOptics():
            live = Oblique(coarse_points=LIVE_PHASE_CONTRAST.coarse_points, grid_um_na=LIVE_GRID_UM_NA)
        case BrightfieldOptics():
            live = Brightfield()
        case DICOptics():
            live = DIC()
        case _:
            assert_never(settings)
    given = settings.model_dump(exclude={"kind", "lamp_width_um"})
    width_um = settings.lamp_width_um
    lamp = Spectrum.band(settings.wavelength_um, width_um) if width_um > 0 else None
    return replace(live, lamp=lamp, **given)


def recorded_specimen(settings: RecordedSpecimen) -> sim.RecordedSpecimen:
    """The recording that an experiment names; StorageError says what is wrong or not known."""
    from acq_isl import sim

    return sim.RecordedSpecimen.from_path(
        settings.folder,
        transmitted=settings.transmitted,
        place=(settings.position, settings.time),
        pixel_size_um=settings.pixel_size_um,
        z_step_um=settings.z_step_um,
    )


def _running_core(port: int) -> Any:
    import pycromanager

    fix = "start Micro-Manager and tick Tools > Options > Run server on port 4827, or use --sim"
    try:
        # The bridge itself waits for seconds and leaves sockets and threads behind when nobody is there.
        socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_S).close()
    except OSError as error:
        raise ScopeError(f"no Micro-Manager answers on port {port}", got=str(error), fix=fix) from error
    try:
        return pycromanager.Core(port=port, timeout=3000)
    except Exception as error:  # the bridge raises bare Exceptions
        raise ScopeError(
            f"what answers on port {port} is no Micro-Manager", got=str(error), fix=fix
        ) from error


@contextmanager
def _headless(settings: HeadlessMicroManager) -> Iterator[OpenMicroscope]:
    import pycromanager

    for path, what in ((settings.folder, "the Micro-Manager folder"), (settings.config, "the configuration")):
        if not path.exists():
            raise ScopeError(f"{what} is not at {path}", fix="correct microscope in the experiment file")
    try:
        pycromanager.start_headless(str(settings.folder), str(settings.config), python_backend=True)
    except Exception as error:  # pymmcore raises RuntimeError or CMMError, depending on the device
        raise ScopeError(
            "Micro-Manager's core did not start",
            got=str(error),
            fix="load the configuration in Micro-Manager once",
        ) from error
    try:
        yield OpenMicroscope(pycromanager.Core(), f"Micro-Manager core, {settings.config.name}")
    finally:
        pycromanager.stop_headless()
