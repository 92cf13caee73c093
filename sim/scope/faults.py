"""Planted faults at the simulated core: what they do to an exposure, and to the core's calls."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar, assert_never

import numpy as np

from acq_isl.experiment.faults import (
    BufferOverflow,
    DroppedFrames,
    FocusDrift,
    FocusFails,
    HardwareTimeout,
    LampFlicker,
    PresetFails,
    ScopeFault,
    SettleTime,
    StageBacklash,
    StuckShutter,
)
from acq_isl.sim.scope.backlash import StageOffsets
from acq_isl.sim.scope.exposure import Exposure

_DROP, _FLICKER = 1, 2  # streams of the seed

Kind = TypeVar("Kind", DroppedFrames, BufferOverflow, PresetFails, HardwareTimeout, FocusFails)


class PlantedFaults:
    """The faults of an opened microscope and what they remember. Called by its core, on any thread."""

    def __init__(self, faults: Sequence[ScopeFault], seed: int) -> None:
        self._planted, self._seed = tuple(faults), seed
        self._faults: tuple[ScopeFault, ...] = ()
        self.offsets = StageOffsets([fault for fault in faults if isinstance(fault, StageBacklash)])
        self._failed: Counter[int] = Counter()
        self._began: dict[FocusDrift, float] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __bool__(self) -> bool:
        return bool(self._planted)

    def arm(self) -> None:
        """From now on they act; until then the microscope is being set up."""
        self._faults = self._planted

    def close(self) -> None:
        """End waits for devices that are never ready."""
        self._closed.set()

    # what an image shows

    def apply(self, exposure: Exposure, number: int, seconds: float) -> Exposure:
        """What exposure ``number`` truly depends on, ``seconds`` into the specimen's time."""
        for fault in self._faults:
            if fault.active(number, seconds):
                exposure = self._apply(fault, exposure, number, seconds)
        return exposure

    def _apply(self, fault: ScopeFault, exposure: Exposure, number: int, seconds: float) -> Exposure:
        view, when_s = exposure.view, exposure.started_s
        match fault:
            case FocusDrift(um_per_min=speed):
                began = self._began.setdefault(fault, seconds)
                off_um = (0.0, 0.0, speed * (seconds - began) / 60)
            case StageBacklash():
                off_um = self.offsets.backlash(fault, when_s, exposure.stage_um)
            case SettleTime():
                off_um = self.offsets.settling(fault, when_s, exposure.stage_um)
            case LampFlicker(sd=sd):
                factor = 1.0 + sd * float(self._random(_FLICKER, number).standard_normal())
                return replace(exposure, lamp=exposure.lamp * max(0.0, factor))
            case StuckShutter(stuck=stuck):
                return replace(exposure, lit=stuck == "open")
            case DroppedFrames() | PresetFails() | HardwareTimeout() | BufferOverflow() | FocusFails():
                return exposure
            case _:
                assert_never(fault)
        x_um, y_um, z_um = off_um
        moved = replace(view, x_um=view.x_um + x_um, y_um=view.y_um + y_um, z_um=view.z_um + z_um)
        return replace(exposure, view=moved)

    def dropped(self, number: int, seconds: float) -> bool:
        """Whether the camera delivers nothing for exposure ``number``."""
        return any(
            number in fault.at
            or (fault.every is not None and (number - fault.after) % fault.every == fault.every - 1)
            or self._random(_DROP, number).random() < fault.probability
            for _, fault in self._active(DroppedFrames, number, seconds)
        )

    @property
    def can_drop(self) -> bool:
        """Whether any frame may ever be dropped."""
        return any(isinstance(fault, DroppedFrames) for fault in self._faults)

    def overflowed(self, number: int, seconds: float) -> bool:
        """Whether the circular buffer counts as overflowed."""
        active = self._active(BufferOverflow, number, seconds)
        return any(self._uses(index, fault.times) for index, fault in active)

    # what a call of the core does

    def set_preset(self, group: str, preset: str, number: int, seconds: float) -> None:
        """Called before a preset is set; RuntimeError, as the core raises it, if it fails."""
        for index, fault in self._active(PresetFails, number, seconds):
            if fault.name == preset and self._uses(index, fault.times):
                raise RuntimeError(
                    f'Cannot set group "{group}" to preset "{preset}": a device did not answer'
                )

    def find_focus(self, device: str, number: int, seconds: float) -> None:
        """Called when the focus is looked for; RuntimeError, as the core raises it, if it is not found."""
        for index, fault in self._active(FocusFails, number, seconds):
            if self._uses(index, fault.times):
                raise RuntimeError(f'Error in device "{device}": no reflection of the cover glass')

    def wait_for(self, devices: Sequence[str], timeout_ms: float, number: int, seconds: float) -> None:
        """Called before the core waits for devices; waits in vain and raises RuntimeError if one is stuck."""
        for index, fault in self._active(HardwareTimeout, number, seconds):
            if fault.device in devices and self._uses(index, fault.times):
                wait_s = timeout_ms / 1000 if fault.wait_s is None else fault.wait_s
                self._closed.wait(wait_s)
                raise RuntimeError(f'Wait for device "{fault.device}" timed out after {wait_s * 1000:g}ms')

    def busy(self, device: str, number: int, seconds: float) -> bool:
        """Whether a device says it is busy although nothing moves."""
        return any(
            fault.device == device and (fault.times is None or self._failed[index] < fault.times)
            for index, fault in self._active(HardwareTimeout, number, seconds)
        )

    def _active(self, kind: type[Kind], number: int, seconds: float) -> Iterator[tuple[int, Kind]]:
        """The faults of a kind that act now, with their place among all."""
        for index, fault in enumerate(self._faults):
            if isinstance(fault, kind) and fault.active(number, seconds):
                yield index, fault

    def _uses(self, index: int, times: int | None) -> bool:
        with self._lock:
            if times is not None and self._failed[index] >= times:
                return False
            self._failed[index] += 1
        return True

    def _random(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, stream, number))
