"""State of the microscope at the start of an exposure, for single images and inside sequences."""

from __future__ import annotations

import bisect
import time
from collections import deque
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from acq_isl.errors import ScopeError
from acq_isl.sim.scope.config import FILTER
from acq_isl.sim.view import View

_REMEMBERED_STATES = 4096


@dataclass(frozen=True, slots=True)
class Exposure:
    """What an image depends on."""

    view: View
    exposure_ms: float
    lit: bool
    """Whether the shutter is open, or opens for the exposure."""
    moving: bool
    """Whether a stage was still moving."""
    bit_depth: int
    bytes_per_pixel: int
    started_s: float
    """`time.perf_counter` at its start."""
    stage_um: tuple[float, float, float]
    """x, y and z as the stages report them, counted from where x and y were 0 at the start."""
    lamp: float = 1.0
    """Brightness of the lamp in this exposure, relative to what the channel's settings say."""


def read_state(core: Any, origin_um: tuple[float, float], *, in_sequence: bool = False) -> Exposure:
    """Read the state of the core; ``origin_um`` is stage x and y at which the core reports 0, 0.

    ScopeError if the camera is set to colour or 32 bit, or no objective is in the light path.
    """
    started_s = time.perf_counter()
    bytes_per_pixel = core.get_bytes_per_pixel()
    if bytes_per_pixel > 2:
        raise ScopeError(
            "the simulated camera takes grey images only",
            wanted="PixelType 8bit or 16bit",
            got=core.get_property(core.get_camera_device(), "PixelType"),
            fix="set_property('Camera', 'PixelType', '16bit')",
        )
    shutter = core.get_shutter_device()
    opens = core.get_auto_shutter() and not in_sequence  # a running sequence has opened it already
    stage_um = read_stages(core, origin_um)
    return Exposure(
        view=_view(core, stage_um),
        exposure_ms=core.get_exposure(),
        lit=not shutter or opens or core.get_shutter_open(),
        moving=core.device_busy(core.get_xy_stage_device()) or core.device_busy(core.get_focus_device()),
        bit_depth=core.get_image_bit_depth(),
        bytes_per_pixel=bytes_per_pixel,
        started_s=started_s,
        stage_um=stage_um,
    )


def read_stages(core: Any, origin_um: tuple[float, float]) -> tuple[float, float, float]:
    """Where the stages say they are, (x, y, z) in micrometres, whatever is called 0, 0 by now."""
    x_um, y_um = core.get_xy_position()
    return x_um + origin_um[0], y_um + origin_um[1], core.get_position()


def _view(core: Any, stage_um: tuple[float, float, float]) -> View:
    pixel_size_um = core.get_pixel_size_um(True)
    if pixel_size_um <= 0:
        raise ScopeError(
            "the objective turret is on an empty place, so the pixel size is unknown",
            wanted="an objective of the group Objective",
            got=core.get_state_label("Objective"),
            fix="set_config('Objective', '20x')",
        )
    x_um, y_um, z_um = stage_um
    left, top, columns, rows = core.get_roi()
    camera = core.get_camera_device()
    binning = int(core.get_property(camera, "Binning"))
    off_columns = left + (columns - int(core.get_property(camera, "OnCameraCCDXSize")) // binning) / 2
    off_rows = top + (rows - int(core.get_property(camera, "OnCameraCCDYSize")) // binning) / 2
    return View(
        x_um=x_um + off_columns * pixel_size_um,
        y_um=y_um + off_rows * pixel_size_um,
        z_um=z_um,
        channel=core.get_state_label(FILTER),
        pixel_size_um=pixel_size_um,
        shape=(rows, columns),
        sensor_origin_px=(top * binning, left * binning),
        binning=binning,
    )


class Sequence:
    """A running sequence acquisition: which state each of its frames was exposed in.

    Frames are fetched after they were exposed, so states are remembered as they change. ``z_um`` and
    ``exposures_ms`` are hardware-triggered, one per frame; empty if that device runs no sequence.
    """

    def __init__(self, start: Exposure, z_um: tuple[float, ...], exposures_ms: tuple[float, ...]) -> None:
        self._z_um, self._exposures_ms = z_um, exposures_ms
        self._states = deque([start], maxlen=_REMEMBERED_STATES)

    def note(self, state: Exposure) -> None:
        """Remember a state that holds from now on. The oldest of 4,096 is forgotten."""
        self._states.append(state)

    def exposure(self, number: int, ended_s: float) -> Exposure:
        """State at the start of frame ``number``, ended at ``ended_s`` (`time.perf_counter`)."""
        exposure_ms = self._at(ended_s).exposure_ms
        if self._exposures_ms:
            exposure_ms = self._exposures_ms[number % len(self._exposures_ms)]
        found = self._at(ended_s - exposure_ms / 1000)
        z_um = self._z_um[number % len(self._z_um)] if self._z_um else found.view.z_um
        stage_um = (*found.stage_um[:2], z_um)
        return replace(found, exposure_ms=exposure_ms, stage_um=stage_um, view=replace(found.view, z_um=z_um))

    def _at(self, when_s: float) -> Exposure:
        after = bisect.bisect_right(self._states, when_s, key=lambda state: state.started_s)
        found = self._states[max(after - 1, 0)]
        when_s = max(when_s, found.started_s)
        if found.moving and after < len(self._states):
            found = _between(found, self._states[after], when_s)
        return replace(found, started_s=when_s)


def to_perf_counter(local_time: str) -> float:
    """`time.perf_counter` at a local time as the core writes it into metadata."""
    age = datetime.now() - datetime.fromisoformat(local_time)
    return time.perf_counter() - age.total_seconds()


def _between(first: Exposure, second: Exposure, when_s: float) -> Exposure:
    """State on the way to the next: the x-y stage moves at constant speed, the focus drive jumps."""
    duration_s = second.started_s - first.started_s
    part = (when_s - first.started_s) / duration_s if duration_s > 0 else 0.0
    (x_um, y_um, z_um), there_um = first.stage_um, second.stage_um
    moved = (part * (there_um[0] - x_um), part * (there_um[1] - y_um))
    view = replace(first.view, x_um=first.view.x_um + moved[0], y_um=first.view.y_um + moved[1])
    return replace(first, view=view, stage_um=(x_um + moved[0], y_um + moved[1], z_um))
