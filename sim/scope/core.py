"""The real Micro-Manager core, with only the pixels replaced."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from acq_isl.sim.scope.camera import CountsImage
from acq_isl.sim.scope.config import (
    AUTOFOCUS_REACH_UM,
    AUTOFOCUS_STEP_UM,
    DRUG,
    PERFUSION,
    ScopeSettings,
)
from acq_isl.sim.scope.core_faults import FaultyCalls
from acq_isl.sim.scope.core_stages import StageCalls, to_camel_case, with_both_names
from acq_isl.sim.scope.exposure import Exposure, Sequence, read_state, to_perf_counter
from acq_isl.sim.scope.faults import PlantedFaults
from acq_isl.sim.scope.render import Renderer, wait_for_result

# Calls after which the state may be another one, and calls that change what the stage calls 0, 0.
_CHANGES: tuple[str, ...] = (
    "set_config",
    "set_state",
    "set_state_label",
    "set_exposure",
    "set_auto_shutter",
    "stop",
)
_CHANGES += (
    "set_shutter_open",
    "set_shutter_device",
    "wait_for_device",
    "wait_for_config",
    "wait_for_system",
)
_ORIGINS = ("set_origin_xy", "set_origin_x", "set_origin_y", "set_adapter_origin_xy")


@with_both_names
class SimulatedPixels(StageCalls):
    """Overrides of the core's image and sequence calls; put in front of its class.

    A class of its own because SWIG classes refuse attributes later.
    """

    def __init__(self, renderer: Renderer, settings: ScopeSettings, faults: PlantedFaults) -> None:
        super().__init__(settings, faults)
        self._renderer = renderer
        self._exposed = 0  # snaps and sequences, which number the noise
        self._exposures = 0  # images, which the faults count
        self._frame: CountsImage | None = None
        self._sequence: Sequence | None = None
        self._sequence_began, self._popped, self._delivered = 0, 0, 0
        self.last_exposure: Exposure | None = None

    @property
    def _real(self) -> Any:
        return super()  # the core itself

    def state(self) -> Exposure:
        """What an exposure started now would see."""
        return self._apply_faults(read_state(self, self._origin_um), self._exposures)

    def _apply_faults(self, exposure: Exposure, number: int) -> Exposure:
        return self._faults.apply(exposure, number, self._renderer.timeline.time_at(exposure.started_s))

    def _now(self) -> tuple[int, float]:
        return self._exposures, self._renderer.timeline.time_s

    # autofocus

    def full_focus(self) -> None:
        """As by the reflection of the cover glass: true, whatever the focus drive believes."""
        self._real.full_focus()
        self._faults.find_focus(self._real.get_auto_focus_device(), *self._now())
        aim_um = self._real.get_auto_focus_offset() * AUTOFOCUS_STEP_UM
        way_um = aim_um - self.state().view.z_um
        if abs(way_um) > AUTOFOCUS_REACH_UM:
            device = self._real.get_auto_focus_device()
            raise RuntimeError(f'Error in device "{device}": no reflection within {AUTOFOCUS_REACH_UM:g} um')
        self.set_position(self._real.get_position() + way_um)
        self._real.wait_for_device(self._real.get_focus_device())

    # single images

    def snap_image(self) -> None:
        exposure = self.state()
        self._exposed += 1
        self._exposures += 1
        rendering = self._renderer.submit(exposure, (self._exposed, 0))
        self._frame = None
        self._real.snap_image()
        # An error must surface here: pycromanager polls get_image for ever if that one fails.
        self._frame, self.last_exposure = wait_for_result(rendering), exposure

    def get_image(self, *channel: int) -> CountsImage:
        real: CountsImage = self._real.get_image(*channel)
        if self._frame is None or (self._frame.shape, self._frame.dtype) != (real.shape, real.dtype):
            # Region or binning changed since; the real buffer was made anew as well.
            self._frame = wait_for_result(self._renderer.submit(self.state(), (self._exposed, 0)))
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
        self._sequence_began, self._popped, self._delivered = self._exposures, 0, 0
        start = read_state(self, self._origin_um)
        self._sequence = Sequence(start, self._stage_running, self._exposures_running)

    def _note(self) -> None:
        """Call after every change: frames of a running sequence look like the state of their own time."""
        if self._renderer.timeline.running:
            self._renderer.timeline.set_valve(self._real.get_state_label(PERFUSION) == DRUG)
        if self._sequence is not None and self._real.is_sequence_running():
            self._sequence.note(read_state(self, self._origin_um, in_sequence=True))

    def pop_next_image_md(self, *args: Any) -> CountsImage:
        while True:
            real, metadata = self._real.pop_next_image_md(*args), args[-1]
            if self._sequence is None:
                return real  # type: ignore[no-any-return]
            number = _image_number(metadata)
            self._popped = number + 1
            self._exposures = max(self._exposures, self._sequence_began + self._popped)
            if not self._dropped(number):
                break
        image = self._expose_frame(real, metadata)
        if self._delivered < number:
            # The core numbers what arrives, and so hides what did not.
            tag = metadata.GetSingleTag("ImageNumber")
            tag.SetValue(str(self._delivered))
            metadata.SetTag(tag)
        self._delivered += 1
        return image

    def get_remaining_image_count(self) -> int:
        count = int(self._real.get_remaining_image_count())
        if self._sequence is None or not self._faults.can_drop:
            return count
        # They were exposed, and may be thrown away without ever being popped.
        self._exposures = max(self._exposures, self._sequence_began + self._popped + count)
        return sum(not self._dropped(number) for number in range(self._popped, self._popped + count))

    def _dropped(self, number: int) -> bool:
        """Whether the camera never delivered a frame of the running sequence."""
        return self._faults.dropped(self._sequence_began + number, self._now()[1])

    def get_last_image_md(self, *args: Any) -> CountsImage:
        return self._expose_frame(self._real.get_last_image_md(*args), args[-1])

    def get_n_before_last_image_md(self, *args: Any) -> CountsImage:
        return self._expose_frame(self._real.get_n_before_last_image_md(*args), args[-1])

    def pop_next_image(self) -> CountsImage:
        return self.pop_next_image_md(_metadata())

    def get_last_image(self) -> CountsImage:
        return self.get_last_image_md(_metadata())

    def _expose_frame(self, real: CountsImage, metadata: Any) -> CountsImage:
        if self._sequence is None:
            return real
        self._note()
        number = _image_number(metadata)
        received = metadata.GetSingleTag("TimeReceivedByCore").GetValue()
        counted = self._sequence_began + number
        self._exposures = max(self._exposures, counted + 1)
        exposure = self._apply_faults(self._sequence.exposure(number, to_perf_counter(received)), counted)
        pixels = wait_for_result(self._renderer.submit(exposure, (self._exposed, number)))
        self.last_exposure = exposure
        return pixels


def simulated_core(base: type, renderer: Renderer, settings: ScopeSettings, faults: PlantedFaults) -> Any:
    """A core with simulated pixels; ``base`` is CMMCore with snake_case names beside its own."""
    body = {name: _then_note(name) for name in _CHANGES} | {name: _keeping_place(name) for name in _ORIGINS}
    body |= {to_camel_case(name): call for name, call in body.items()}
    classes = (SimulatedPixels, FaultyCalls, base) if faults else (SimulatedPixels, base)
    return type("SimCore", classes, body)(renderer, settings, faults)


def _then_note(name: str) -> Callable[..., Any]:
    def call(core: SimulatedPixels, *args: Any) -> Any:
        result = getattr(core._real, name)(*args)
        if "wait" in name:
            core._faults.offsets.end_move(time.perf_counter())
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


def _image_number(metadata: Any) -> int:
    """Number of the frame in its sequence, from 0."""
    return int(metadata.GetSingleTag("ImageNumber").GetValue())


def _metadata() -> Any:
    import pymmcore

    return pymmcore.Metadata()
