"""The microscope core as the guard sees it: what it has, what is safe, and the few things the guard sets."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from acq_isl.errors import AcquisitionFailed, ActionRefused, ExperimentError, FocusFailed, ScopeError
from acq_isl.rules import Limits
from acq_isl.rules.pixels import PixelToStage
from acq_isl.stack import Autofocus, StackRequest

logger = logging.getLogger(__name__)


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """The valid name that looks most like a wrong one, in quotes; ``"nothing"`` where there is none."""
    by_fold = {name.casefold(): name for name in valid}
    close = difflib.get_close_matches(wrong.casefold(), by_fold, n=1, cutoff=0.0)
    return repr(by_fold[close[0]]) if close else "nothing"


def _names(vector: Any) -> tuple[str, ...]:
    """Names in a core's answer: a Python sequence, or the Java backend's StrVector."""
    if isinstance(vector, list | tuple):
        return tuple(str(name) for name in vector)
    return tuple(str(vector.get(index)) for index in range(vector.size()))


def _require(what: str, name: str, valid: Sequence[str]) -> None:
    """ExperimentError for a name that is not among the valid ones; names the nearest."""
    if name not in valid:
        raise ExperimentError(
            f"{what} {name!r}",
            wanted=f"one of {', '.join(valid)}",
            got=name,
            fix=f"did you mean {nearest(name, valid)}?",
        )


def _answers(ask: Callable[[str], Any], device: str) -> bool:
    """Whether a device is of the kind that a question of the core is for."""
    try:
        ask(device)
    except Exception:  # noqa: BLE001 - the bridge raises bare Exceptions
        return False
    return True


class Hardware:
    """A running Micro-Manager core, Python or Java, with snake_case methods."""

    def __init__(self, core: Any) -> None:
        self._core = core
        self._focus_was_held = False

    def presets(self, group: str) -> tuple[str, ...]:
        """Presets of a configuration group; ExperimentError names the nearest if there is no such group."""
        core = self._core
        groups = _names(core.get_available_config_groups())
        _require("the microscope has no configuration group", group, groups)
        return _names(core.get_available_configs(group))

    def require_preset(self, group: str, preset: str, limits: Limits) -> None:
        """Check that a preset exists and is allowed; nothing is sent to the devices.

        ExperimentError names the nearest where there is none, ActionRefused if the limits do not allow it.
        """
        _require(f"the group {group} has no preset", preset, self.presets(group))
        allowed = limits.presets.get(group)
        if allowed is not None and preset not in allowed:
            raise ActionRefused(
                f"the preset {preset} of {group} is not allowed in this experiment",
                wanted=f"one of {', '.join(allowed) or 'nothing'}",
                got=preset,
                fix=f"add {preset} to limits.presets.{group} if it is safe",
            )

    def require_property(self, device: str, name: str) -> None:
        """Check that a device has a property; ExperimentError names the nearest."""
        self.require_device(device)
        names = _names(self._core.get_device_property_names(device))
        _require(f"the device {device} has no property", name, names)

    def require_property_value(self, device: str, name: str, value: str) -> None:
        """Check that a property exists, may be set, and takes a value, as far as the core knows."""
        self.require_property(device, name)
        core, what = self._core, f"{name} of {device}"
        if core.is_property_read_only(device, name):
            raise ExperimentError(f"{what} cannot be set: it is read only")
        allowed = _names(core.get_allowed_property_values(device, name))
        if allowed and value not in allowed:
            _require(f"{what} does not take", value, allowed)
        if core.has_property_limits(device, name):
            low, high = (
                float(ask(device, name))
                for ask in (core.get_property_lower_limit, core.get_property_upper_limit)
            )
            try:
                within = low <= float(value) <= high
            except ValueError:
                within = False
            if not within:
                raise ExperimentError(f"{what} does not take {value}", wanted=f"{low:g} to {high:g}")

    def require_autofocus(self, device: str) -> None:
        """Check that there is an autofocus device, or the one of this name; ExperimentError if not."""
        if device:
            self.require_device(device)
            self._require_autofocus(device)
        elif not self._core.get_auto_focus_device():
            raise ExperimentError("the microscope has no autofocus device", fix="leave autofocus out")

    def require_device(self, device: str) -> None:
        """Check that a device is loaded; ExperimentError names the nearest."""
        _require("the microscope has no device", device, _names(self._core.get_loaded_devices()))

    def require_devices(self, request: StackRequest) -> None:
        """Check that camera and autofocus device of a stack exist; ExperimentError names the nearest."""
        core, focus = self._core, request.autofocus
        if request.camera:
            self.require_device(request.camera)
            if not _answers(core.get_exposure, request.camera):
                raise ExperimentError(f"{request.camera} is no camera", fix="name a camera in the channel")
        if focus is None:
            return
        if focus.device:
            self.require_device(focus.device)
            if not _answers(core.get_position, focus.device):  # no motor of an offset
                self._require_autofocus(focus.device)
        elif not core.get_auto_focus_device():
            raise ExperimentError("the microscope has no autofocus device", fix="leave autofocus_plan out")

    def _require_autofocus(self, device: str) -> None:
        """Only selecting it tells whether a device is one; the selection is undone."""
        selected = self._core.get_auto_focus_device()
        try:
            self._core.set_auto_focus_device(device)
            self._core.set_auto_focus_device(selected)
        except Exception as error:  # the bridge raises bare Exceptions
            raise ExperimentError(
                f"{device} cannot focus",
                wanted="Micro-Manager's autofocus device, or the motor of its offset",
                fix="correct autofocus_device_name, or leave it out for the device that is selected",
            ) from error

    def require_camera(self) -> None:
        """Check that a camera answers; ScopeError otherwise.

        Pycro-Manager starts threads before it notices, which then keep the process alive for ever.
        """
        try:
            depth = int(self._core.get_bytes_per_pixel())
        except RuntimeError as error:
            raise ScopeError("the core has no working camera", got=str(error)) from error
        if int(self._core.get_number_of_camera_channels()) > 1:
            raise ScopeError(
                "several cameras expose at once",
                got=str(self._core.get_camera_device()),
                fix="choose one of them as the core's camera: Pycro-Manager gives their images the same axes"
                ", so that the second one would replace the first in the measured data",
            )
        if depth == 0:
            raise ScopeError(
                "the core has no camera",
                fix="load a configuration with a camera; a core that was stopped cannot be used again",
            )

    @property
    def focus_device(self) -> str:
        return str(self._core.get_focus_device())

    def exposure_ms(self) -> float:
        return float(self._core.get_exposure())

    def bytes_per_image(self) -> int:
        """Size of one image in storage."""
        core = self._core
        return int(core.get_image_width()) * int(core.get_image_height()) * int(core.get_bytes_per_pixel())

    def device_timeout_s(self) -> float:
        """How long the core itself waits for a busy device."""
        return float(self._core.get_timeout_ms()) / 1000

    def busy_stages(self) -> dict[str, tuple[float, ...]]:
        """Where the stages are that say they move; asks the devices, so only for when time runs out."""
        core = self._core
        places: dict[str, tuple[float, ...]] = {}
        focus, table = self.focus_device, str(core.get_xy_stage_device())
        if focus and core.device_busy(focus):
            places[focus] = (float(core.get_position(focus)),)
        if table and core.device_busy(table):
            places[table] = (float(core.get_x_position(table)), float(core.get_y_position(table)))
        return places

    def devices(self) -> tuple[str, ...]:
        """Labels of all devices, those first that an acquisition most often waits for."""
        core = self._core
        first = (core.get_camera_device(), core.get_xy_stage_device(), core.get_focus_device())
        labels = (*map(str, first), str(core.get_shutter_device()), *_names(core.get_loaded_devices()))
        return tuple(dict.fromkeys(label for label in labels if label not in ("", "Core")))

    def busy(self, device: str) -> bool:
        """Whether a device says that it is busy."""
        return bool(self._core.device_busy(device))

    def set_exposure(self, exposure_ms: float) -> None:
        """Send the exposure; the engine does not when the last event had the same one."""
        try:
            self._core.set_exposure(float(exposure_ms))
        except RuntimeError as error:
            raise AcquisitionFailed(
                f"the camera refused an exposure of {exposure_ms:g} ms", got=str(error)
            ) from error

    def set_preset(self, group: str, preset: str) -> None:
        """Select a preset and wait for its devices; AcquisitionFailed if the core refuses."""
        try:
            self._core.set_config(group, preset)
            self._core.wait_for_config(group, preset)
        except RuntimeError as error:
            raise AcquisitionFailed(
                f"the microscope did not set {group} to {preset}",
                got=str(error),
                fix="check the devices of this preset in Micro-Manager",
            ) from error

    def set_property(self, device: str, name: str, value: str) -> None:
        """Set a property and wait for its device; AcquisitionFailed if the core refuses."""
        try:
            self._core.set_property(device, name, value)
            self._core.wait_for_device(device)
        except RuntimeError as error:
            raise AcquisitionFailed(
                f"the microscope did not set {name} of {device} to {value}",
                got=str(error),
                fix="check the values that this property takes in Micro-Manager's property browser",
            ) from error

    def pixel_to_stage(self) -> PixelToStage | None:
        """Micro-Manager's own affine, whose residual is not known; None if there is none."""
        core = self._core
        values = [float(value) for value in core.get_pixel_size_affine(True)]
        matrix = (values[0], values[1]), (values[3], values[4])
        pixel_um = float(core.get_pixel_size_um(True))
        # Without a calibration the core answers with pixels of 1 um, or with zeros.
        known = abs(float(np.linalg.det(matrix))) > 0
        if not known or (pixel_um != 1 and matrix == ((1.0, 0.0), (0.0, 1.0))):
            return None
        return PixelToStage(matrix=matrix, residual_um=0.0)

    def move(self, x_um: float, y_um: float, z_um: float | None) -> None:
        """Go to a place and wait until all stages are there; AcquisitionFailed if one is not."""
        core = self._core
        try:
            core.set_xy_position(float(x_um), float(y_um))
            if z_um is not None:
                core.set_position(float(z_um))
            core.wait_for_device(core.get_xy_stage_device())
            core.wait_for_device(core.get_focus_device())
        except RuntimeError as error:
            place = f"x {x_um:g}, y {y_um:g}" + ("" if z_um is None else f", z {z_um:g}") + " um"
            raise AcquisitionFailed(f"the stage did not go to {place}", got=str(error)) from error

    def find_focus(self, focus: Autofocus) -> float:
        """Where the autofocus device finds the focus, in um on the focus drive; else FocusFailed."""
        core, device = self._core, focus.device
        try:
            if core.is_continuous_focus_enabled():  # it would undo the planes of a stack
                core.enable_continuous_focus(False)
                self._focus_was_held = True
            motor = device and _answers(core.get_position, device)
            if device and not motor:
                core.set_auto_focus_device(device)
            if focus.offset is not None and motor:
                core.set_position(device, float(focus.offset))
                core.wait_for_device(device)
            elif focus.offset is not None:
                core.set_auto_focus_offset(float(focus.offset))
            for left in reversed(range(focus.tries)):
                try:
                    core.full_focus()
                    core.wait_for_system()
                    break
                except Exception as error:  # the bridge raises bare Exceptions
                    if not left:
                        raise
                    logger.warning("the focus was not found at once: %s", error)
            return float(core.get_position())
        except Exception as error:  # the bridge raises bare Exceptions
            name = device or str(core.get_auto_focus_device())
            fix = "check that it reaches the specimen here, and its offset"
            raise FocusFailed(f"{name} found no focus", got=str(error), fix=fix) from error

    @contextmanager
    def prepared(self, request: StackRequest) -> Iterator[None]:
        """Camera and shutter as a stack wants them, and afterwards as they were.

        A shutter that stays open is opened at the place of the stack, not on the way there.
        """
        core = self._core
        with ExitStack() as undo:
            try:
                if request.camera not in ("", camera := core.get_camera_device()):
                    undo.callback(core.set_camera_device, camera)
                    core.set_camera_device(request.camera)
                if request.keep_shutter_open:
                    self.move(request.x_um, request.y_um, request.z_um[0])
                    self.set_preset(request.group, request.preset)
                    undo.callback(core.set_auto_shutter, core.get_auto_shutter())
                    undo.callback(core.set_shutter_open, False)
                    core.set_auto_shutter(False)
                    core.set_shutter_open(True)
            except RuntimeError as error:
                what = f"camera and shutter are not as {request.key} wants them"
                raise AcquisitionFailed(what, got=str(error), fix="check the two devices") from error
            yield

    def restore_focus(self) -> None:
        """Hold the focus again if it was held before it was looked for."""
        if self._focus_was_held:
            self._focus_was_held = False
            try:
                self._core.enable_continuous_focus(True)
            except RuntimeError as error:
                logger.warning("the focus is not held again: %s", error)

    def make_safe(self) -> None:
        """Stop the camera and close the shutter; AcquisitionFailed if the light may still be on."""
        try:
            if self._core.is_sequence_running():
                self._core.stop_sequence_acquisition()
            if self._core.get_shutter_device():
                self._core.set_shutter_open(False)
        except RuntimeError as error:
            raise AcquisitionFailed(
                "the shutter could not be closed", got=str(error), fix="switch the lamp off by hand"
            ) from error
