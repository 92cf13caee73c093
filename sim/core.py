"""The real Micro-Manager core, with only the pixels replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from acq_isl.sim.camera import CountsImage
from acq_isl.sim.config import Limits, ScopeSettings
from acq_isl.sim.exposure import Exposure, Sequence, capture, monotonic_of
from acq_isl.sim.render import Renderer, finished

_OUT_OF_RANGE = "Position out of range (103)"  # what DemoCamera's stages answer

# Calls after which the state may be another one: core's own names, snake_case and camelCase.
_CHANGES = (
    ("set_config", "setConfig"),
    ("set_state", "setState"),
    ("set_state_label", "setStateLabel"),
    ("set_exposure", "setExposure"),
    ("set_shutter_open", "setShutterOpen"),
    ("set_shutter_device", "setShutterDevice"),
    ("set_auto_shutter", "setAutoShutter"),
    ("wait_for_device", "waitForDevice"),
    ("wait_for_config", "waitForConfig"),
    ("wait_for_system", "waitForSystem"),
    ("stop", "stop"),
)
# Calls that change what the stage calls 0, 0, while it stays where it is.
_ORIGINS = (
    ("set_origin_xy", "setOriginXY"),
    ("set_origin_x", "setOriginX"),
    ("set_origin_y", "setOriginY"),
    ("set_adapter_origin_xy", "setAdapterOriginXY"),
)


class SimulatedPixels:
    """Overrides of the core's image, sequence and stage calls; put in front of its class.

    A class body of its own because SWIG classes refuse attributes later. Every override has the core's
    snake_case and camelCase name, since Pycro-Manager uses both.
    """

    def __init__(self, renderer: Renderer, settings: ScopeSettings) -> None:
        super().__init__()
        self._renderer, self._settings = renderer, settings
        self._origin_um = (0.0, 0.0)
        self._exposed = 0
        self._frame: CountsImage | None = None
        self._sequence: Sequence | None = None
        self._stage_loaded: dict[str, tuple[float, ...]] = {}
        self._stage_running: tuple[float, ...] = ()
        self._exposures_loaded: tuple[float, ...] = ()
        self._exposures_running: tuple[float, ...] = ()
        self.last_exposure: Exposure | None = None

    @property
    def _real(self) -> Any:
        return super()  # the core itself

    def state(self) -> Exposure:
        """What an exposure started now would see."""
        return capture(self, self._origin_um)

    # single images

    def snap_image(self) -> None:
        exposure = self.state()
        self._exposed += 1
        rendering = self._renderer.submit(exposure, (self._exposed, 0))
        self._frame = None
        self._real.snap_image()
        # An error must surface here: pycromanager polls get_image for ever if that one fails.
        self._frame, self.last_exposure = finished(rendering), exposure

    def get_image(self, *channel: int) -> CountsImage:
        real: CountsImage = self._real.get_image(*channel)
        if self._frame is None or (self._frame.shape, self._frame.dtype) != (real.shape, real.dtype):
            # Region or binning changed since; the real buffer was made anew as well.
            self._frame = finished(self._renderer.submit(self.state(), (self._exposed, 0)))
        return self._frame.copy()

    # sequences of images

    def start_sequence_acquisition(self, *args: Any) -> None:
        self._begin_sequence()
        self._real.start_sequence_acquisition(*args)

    def start_continuous_sequence_acquisition(self, *args: Any) -> None:
        self._begin_sequence()
        self._real.start_continuous_sequence_acquisition(*args)

    def _begin_sequence(self) -> None:
        self._exposed += 1
        self._sequence = Sequence(self.state(), self._stage_running, self._exposures_running)

    def _note(self) -> None:
        """Call after every change: frames of a running sequence look like the state of their own time."""
        if self._sequence is not None and self._real.is_sequence_running():
            self._sequence.note(capture(self, self._origin_um, in_sequence=True))

    def pop_next_image_md(self, *args: Any) -> CountsImage:
        return self._developed(self._real.pop_next_image_md(*args), args[-1])

    def get_last_image_md(self, *args: Any) -> CountsImage:
        return self._developed(self._real.get_last_image_md(*args), args[-1])

    def get_n_before_last_image_md(self, *args: Any) -> CountsImage:
        return self._developed(self._real.get_n_before_last_image_md(*args), args[-1])

    def pop_next_image(self) -> CountsImage:
        return self.pop_next_image_md(_metadata())

    def get_last_image(self) -> CountsImage:
        return self.get_last_image_md(_metadata())

    def _developed(self, real: CountsImage, metadata: Any) -> CountsImage:
        if self._sequence is None:
            return real
        self._note()
        number = int(metadata.GetSingleTag("ImageNumber").GetValue())
        received = metadata.GetSingleTag("TimeReceivedByCore").GetValue()
        exposure = self._sequence.exposure(number, monotonic_of(received))
        pixels = finished(self._renderer.submit(exposure, (self._exposed, number)))
        self.last_exposure = exposure
        return pixels

    # hardware sequences

    def load_stage_sequence(self, label: str, positions_um: Any) -> None:
        for z_um in positions_um:
            self._within(label, z_um, self._settings.z_limits_um)
        self._real.load_stage_sequence(label, positions_um)
        self._stage_loaded[label] = tuple(positions_um)

    def start_stage_sequence(self, label: str) -> None:
        self._real.start_stage_sequence(label)
        self._stage_running = self._stage_loaded.get(label, ())

    def stop_stage_sequence(self, label: str) -> None:
        self._real.stop_stage_sequence(label)
        self._stage_running = ()

    def load_exposure_sequence(self, label: str, exposures_ms: Any) -> None:
        self._real.load_exposure_sequence(label, exposures_ms)
        self._exposures_loaded = tuple(exposures_ms)

    def start_exposure_sequence(self, label: str) -> None:
        self._real.start_exposure_sequence(label)
        self._exposures_running = self._exposures_loaded

    def stop_exposure_sequence(self, label: str) -> None:
        self._real.stop_exposure_sequence(label)
        self._exposures_running = ()

    # stages

    def set_position(self, *args: Any) -> None:
        self._within(self._focus(args[:-1]), args[-1], self._settings.z_limits_um)
        self._real.set_position(*args)
        self._note()

    def set_relative_position(self, *args: Any) -> None:
        label = self._focus(args[:-1])
        self._within(label, self._real.get_position(label) + args[-1], self._settings.z_limits_um)
        self._real.set_relative_position(*args)
        self._note()

    def set_xy_position(self, *args: Any) -> None:
        self._within_xy(args[-2], args[-1])
        self._real.set_xy_position(*args)
        self._note()

    def set_relative_xy_position(self, *args: Any) -> None:
        x_um, y_um = self._real.get_xy_position()
        self._within_xy(x_um + args[-2], y_um + args[-1])
        self._real.set_relative_xy_position(*args)
        self._note()

    def set_property(self, label: str, name: str, value: Any) -> None:
        if name == "Position" and label == self._real.get_focus_device():
            self._within(label, float(value), self._settings.z_limits_um)
        self._real.set_property(label, name, value)
        self._note()

    def _focus(self, label: tuple[str, ...]) -> str:
        return label[0] if label else str(self._real.get_focus_device())

    def _within_xy(self, x_um: float, y_um: float) -> None:
        label = self._real.get_xy_stage_device()
        self._within(label, x_um + self._origin_um[0], self._settings.x_limits_um)
        self._within(label, y_um + self._origin_um[1], self._settings.y_limits_um)

    @staticmethod
    def _within(label: str, position_um: float, limits_um: Limits) -> None:
        if not limits_um[0] <= position_um <= limits_um[1]:
            low, high = limits_um
            raise RuntimeError(
                f'Error in device "{label}": {_OUT_OF_RANGE}; '
                f"wanted: {low:g} to {high:g} um; got: {position_um:g} um"
            )

    snapImage, getImage = snap_image, get_image
    startSequenceAcquisition = start_sequence_acquisition
    startContinuousSequenceAcquisition = start_continuous_sequence_acquisition
    popNextImage, popNextImageMD = pop_next_image, pop_next_image_md
    getLastImage, getLastImageMD = get_last_image, get_last_image_md
    getNBeforeLastImageMD = get_n_before_last_image_md
    loadStageSequence, startStageSequence = load_stage_sequence, start_stage_sequence
    stopStageSequence, loadExposureSequence = stop_stage_sequence, load_exposure_sequence
    startExposureSequence, stopExposureSequence = start_exposure_sequence, stop_exposure_sequence
    setPosition, setRelativePosition = set_position, set_relative_position
    setXYPosition, setRelativeXYPosition = set_xy_position, set_relative_xy_position
    setProperty = set_property


def simulated_core(base: type, renderer: Renderer, settings: ScopeSettings) -> Any:
    """An instance of the real core class with simulated pixels.

    Parameters
    ----------
    base : type
        Class of the core Pycro-Manager would make: CMMCore with snake_case names beside its own.
    renderer : Renderer
        Entered already.
    settings : ScopeSettings
    """
    body = {name: _then_note(name) for names in _CHANGES for name in names}
    body |= {name: _keeping_place(name) for names in _ORIGINS for name in names}
    return type("SimCore", (SimulatedPixels, base), body)(renderer, settings)


def _then_note(name: str) -> Callable[..., Any]:
    def call(core: SimulatedPixels, *args: Any) -> Any:
        result = getattr(core._real, name)(*args)
        core._note()
        return result

    return call


def _keeping_place(name: str) -> Callable[..., Any]:
    def call(core: SimulatedPixels, *args: Any) -> Any:
        before = core._real.get_xy_position()
        result = getattr(core._real, name)(*args)
        after = core._real.get_xy_position()
        x_um, y_um = core._origin_um
        core._origin_um = (x_um + before[0] - after[0], y_um + before[1] - after[1])
        return result

    return call


def _metadata() -> Any:
    import pymmcore

    return pymmcore.Metadata()
