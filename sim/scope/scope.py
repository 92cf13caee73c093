"""A microscope without hardware: the real Micro-Manager core looking at a simulated specimen."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

from acq_isl.errors import ScopeError
from acq_isl.experiment.faults import ScopeFault
from acq_isl.sim.scope.camera import Camera
from acq_isl.sim.scope.config import CONFIG_FILE, ScopeSettings, configure
from acq_isl.sim.scope.core import simulated_core
from acq_isl.sim.scope.exposure import Exposure
from acq_isl.sim.scope.faults import PlantedFaults
from acq_isl.sim.scope.render import Renderer
from acq_isl.sim.scope.timeline import Timeline
from acq_isl.sim.view import CameraSettings, HasCamera, HasMetadata, Specimen, View
from acq_isl.stack import Float32Image

_log = logging.getLogger(__name__)
_ENGINE_STOP_S = 5.0


class SimulatedScope:
    """Headless Micro-Manager on DemoCamera devices whose camera sees ``specimen``.

    Inside ``with``, ``pycromanager.Core()`` and ``pycromanager.Acquisition`` work as on a real microscope.
    Stages, limits, busy, configuration groups, exposure, shutters, region of interest, binning,
    sequencing and circular buffer are the core's; the pixels, and the limits of the x-y stage, are ours.
    One at a time per process, any number after another.

    ``faults`` go wrong on purpose, such as ``[FocusDrift(2), DroppedFrames(every=10)]``
    (`acq_isl.experiment.faults`). ScopeError if one is none of the microscope's and, on entering, if the
    device adapters are missing, another core is open, or the core does not start.
    """

    def __init__(
        self, specimen: Specimen, *, settings: ScopeSettings | None = None, faults: Sequence[ScopeFault] = ()
    ) -> None:
        self.specimen = specimen
        self.faults = _check_faults(faults)
        self.settings = settings or ScopeSettings()
        self._open: ExitStack | None = None
        self._core: Any = None
        self._renderer = Renderer(specimen, self._camera(), self.settings)

    def __enter__(self) -> Self:
        if self._open is not None:
            raise ScopeError("this simulated microscope is open already", fix="leave its `with` first")
        with ExitStack() as stack:
            stack.enter_context(self._renderer)
            faults = PlantedFaults(self.faults, self.settings.seed)

            def make_core(base: type) -> Any:
                return simulated_core(base, self._renderer, self.settings, faults)

            core = stack.enter_context(_headless(make_core, self.settings.buffer_size_mb))
            stack.callback(faults.close)
            configure(core, self.specimen.channels, self.settings)
            if isinstance(self.specimen, HasMetadata):
                _add_metadata(core, self.specimen.metadata)
            faults.arm()
            self.timeline.start()
            self._core, self._open = core, stack.pop_all()
        return self

    def open(self) -> Self:
        """Enter without ``with``, as cells of a notebook must; `close` it afterwards."""
        return self.__enter__()

    def close(self) -> None:
        """Close what `open` opened. Does nothing the second time."""
        self.__exit__()

    def __exit__(self, *error: object) -> None:
        stack, self._open, self._core = self._open, None, None
        if stack is not None:
            stack.close()

    @property
    def core(self) -> Any:
        """The core, with snake_case and camelCase names; the one ``pycromanager.Core()`` returns."""
        if self._core is None:
            raise ScopeError(
                "the simulated microscope is closed", fix="use it inside `with SimulatedScope(...)`"
            )
        return self._core

    @property
    def last_exposure(self) -> Exposure | None:
        """State at the start of the exposure of the last image fetched."""
        exposure: Exposure | None = self.core.last_exposure
        return None if exposure is None else self.timeline.date(exposure)

    @property
    def timeline(self) -> Timeline:
        """The specimen's clock, the light it got, and the drug: ``scope.timeline.advance(3600)``."""
        return self._renderer.timeline

    def view(self) -> View:
        """What an exposure started now would see."""
        return self.timeline.date(self.core.state()).view

    def truth(self, view: View | None = None) -> dict[str, Float32Image]:
        """True labels of a view, by default the present one: (y, x) float32 in 0..1 by label name."""
        now = self.view()  # of an open microscope only
        return self._renderer.truth(view or now)

    def _camera(self) -> Camera:
        settings = self.settings.camera
        if settings is None:
            settings = self.specimen.camera if isinstance(self.specimen, HasCamera) else CameraSettings()
        rows, columns = self.settings.shape
        return Camera(settings, seed=self.settings.seed, pixels=rows * columns)


def _check_faults(faults: Sequence[ScopeFault]) -> tuple[ScopeFault, ...]:
    for fault in faults:
        if not isinstance(fault, ScopeFault):
            raise ScopeError(
                f"the simulated microscope cannot have the fault {fault}",
                wanted="a fault of the microscope, such as FocusDrift(2)",
                fix="give a fault of the engine to acq_isl.sim.FaultyEngine",
            )
    return tuple(faults)


def _add_metadata(core: Any, entries: Mapping[str, str]) -> None:
    """Let all images that Pycro-Manager's engine takes from a core carry these entries."""

    def adding(make: Callable[..., Any]) -> Callable[..., Any]:
        def make_with_entries(*args: Any, **settings: Any) -> Any:
            image = make(*args, **settings)
            image.tags.update(entries)
            return image

        return make_with_entries

    core.get_tagged_image = adding(core.get_tagged_image)
    core.pop_next_tagged_image = adding(core.pop_next_tagged_image)


@contextmanager
def _headless(make_core: Callable[[type], Any], buffer_size_mb: int) -> Iterator[Any]:
    """Pycro-Manager's headless core and engine, made by ``make_core`` and undone without a trace."""
    with warnings.catch_warnings():
        # uv installs sources uncompiled; Python warns of theirs at the first import: fatal under -W error.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        from mmpycorex import is_pymmcore_active, launcher
        from pycromanager import start_headless
        from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    adapters = _adapter_path()
    if is_pymmcore_active():
        raise ScopeError(
            "a Micro-Manager core is open in this process already, and Pycro-Manager knows only one",
            fix="leave the `with` of the other simulated microscope, or call pycromanager.stop_headless()",
        )
    if Engine.get_instance() is not None:
        # Left behind by stop_headless; the next engine would be dropped in its favour.
        del Engine.singleton
    original = launcher._create_pymmcore_instance
    launcher._create_pymmcore_instance = lambda: make_core(type(original()))
    try:
        start_headless(adapters, str(CONFIG_FILE), python_backend=True, buffer_size_mb=buffer_size_mb)
    except Exception as error:
        _stop(Engine)
        raise ScopeError(
            "the Micro-Manager core did not start",
            got=str(error),
            fix='pip install --upgrade --force-reinstall "acq-isl[sim]", so that pymmcore and '
            "mm-test-adapters have the same device interface",
        ) from error
    finally:
        launcher._create_pymmcore_instance = original
    try:
        yield Engine.get_core()
    finally:
        _stop(Engine)


def _adapter_path() -> str:
    try:
        from mm_test_adapters import device_adapter_path
    except ImportError as error:
        raise ScopeError(
            "the simulated microscope needs Micro-Manager's demo device adapters",
            wanted="the package mm-test-adapters",
            got=str(error),
            fix='pip install -e ".[sim]"',
        ) from error
    return str(device_adapter_path())


def _stop(engine_class: Any) -> None:
    """End engine threads and unload the core. Waits at most 5 s for an acquisition somebody left running."""
    from mmpycorex import launcher

    engine = engine_class.get_instance()
    try:
        if engine is not None:
            _end_acquisition(engine)
            stopper = threading.Thread(target=engine.shutdown, name="stop engine", daemon=True)
            stopper.start()
            stopper.join(_ENGINE_STOP_S)
            if stopper.is_alive():
                _log.error("threads of Pycro-Manager's engine did not end within %g s", _ENGINE_STOP_S)
    finally:
        if engine is not None:
            # pycromanager keeps the first engine for ever, and with it the core that was unloaded.
            del engine_class.singleton
        try:
            launcher.terminate_pymmcore_instances()
        finally:
            launcher._PYMMCORES.clear()


def _end_acquisition(engine: Any) -> None:
    last = engine.last_event
    if last is not None and not last.acquisition_.are_events_finished():
        _log.warning("an acquisition was still open when the simulated microscope was closed; aborted")
        last.acquisition_.abort(ScopeError("the simulated microscope was closed"))
