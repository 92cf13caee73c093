"""The microscope core as the guard sees it: what it has, what is safe, and the few things the guard sets."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from acq_isl.errors import AcquisitionFailed, ActionRefused, ExperimentError, ScopeError
from acq_isl.rules import Limits

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


class Hardware:
    """A running Micro-Manager core, Python or Java, with snake_case methods."""

    def __init__(self, core: Any) -> None:
        self._core = core

    def require_preset(self, group: str, preset: str, limits: Limits) -> None:
        """Check that a preset exists and is allowed; nothing is sent to the devices.

        ExperimentError names the nearest where there is none, ActionRefused if the limits do not allow it.
        """
        core = self._core
        _require(
            "the microscope has no configuration group", group, _names(core.get_available_config_groups())
        )
        _require(f"the group {group} has no preset", preset, _names(core.get_available_configs(group)))
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

    def require_device(self, device: str) -> None:
        """Check that a device is loaded; ExperimentError names the nearest."""
        _require("the microscope has no device", device, _names(self._core.get_loaded_devices()))

    def require_camera(self) -> None:
        """Check that a camera answers; ScopeError otherwise.

        Pycro-Manager starts threads before it notices, which then keep the process alive for ever.
        """
        try:
            depth = int(self._core.get_bytes_per_pixel())
        except RuntimeError as error:
            raise ScopeError("the core has no working camera", got=str(error)) from error
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
