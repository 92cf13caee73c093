"""The core's stage calls: the limits of the stages, their hardware sequences, and that they moved."""

from __future__ import annotations

import time
from typing import Any, TypeVar

from acq_isl.sim.scope.config import Limits, ScopeSettings
from acq_isl.sim.scope.exposure import read_stages
from acq_isl.sim.scope.faults import PlantedFaults

_OUT_OF_RANGE = "Position out of range (103)"  # what DemoCamera's stages answer


Class = TypeVar("Class", bound=type)


def to_camel_case(name: str) -> str:
    """The core's own name of a call, from Pycro-Manager's snake_case name."""
    first, *rest = name.split("_")
    return first + "".join(word.upper() if word in ("xy", "md", "x", "y") else word.title() for word in rest)


def with_both_names(overrides: Class) -> Class:
    """Give each override its camelCase name too, since Pycro-Manager uses both."""
    for name, call in list(vars(overrides).items()):
        if not name.startswith("_") and callable(call):
            setattr(overrides, to_camel_case(name), call)
    return overrides


@with_both_names
class StageCalls:
    """Overrides of the core's stage calls; put in front of its class, behind `SimulatedPixels`."""

    def __init__(self, settings: ScopeSettings, faults: PlantedFaults) -> None:
        super().__init__()
        self._settings, self._faults = settings, faults
        self._origin_um = (0.0, 0.0)
        self._stage_loaded: dict[str, tuple[float, ...]] = {}
        self._stage_running: tuple[float, ...] = ()
        self._exposures_loaded: tuple[float, ...] = ()
        self._exposures_running: tuple[float, ...] = ()

    @property
    def _device(self) -> Any:
        return super()  # the core itself, or its planted faults

    def _note(self) -> None:
        """Called after every change."""

    # hardware sequences

    def load_stage_sequence(self, label: str, positions_um: Any) -> None:
        for z_um in positions_um:
            self._within(label, z_um, self._settings.z_limits_um)
        self._device.load_stage_sequence(label, positions_um)
        self._stage_loaded[label] = tuple(positions_um)

    def start_stage_sequence(self, label: str) -> None:
        self._device.start_stage_sequence(label)
        self._stage_running = self._stage_loaded.get(label, ())

    def stop_stage_sequence(self, label: str) -> None:
        self._device.stop_stage_sequence(label)
        self._stage_running = ()

    def load_exposure_sequence(self, label: str, exposures_ms: Any) -> None:
        self._device.load_exposure_sequence(label, exposures_ms)
        self._exposures_loaded = tuple(exposures_ms)

    def start_exposure_sequence(self, label: str) -> None:
        self._device.start_exposure_sequence(label)
        self._exposures_running = self._exposures_loaded

    def stop_exposure_sequence(self, label: str) -> None:
        self._device.stop_exposure_sequence(label)
        self._exposures_running = ()

    # stages

    def set_position(self, *args: Any) -> None:
        label = self._focus(args[:-1])
        self._within(label, args[-1], self._settings.z_limits_um)
        self._moves(z_um=args[-1] if label == self._device.get_focus_device() else None)
        self._device.set_position(*args)
        self._note()

    def set_relative_position(self, *args: Any) -> None:
        label = self._focus(args[:-1])
        z_um = self._device.get_position(label) + args[-1]
        self._within(label, z_um, self._settings.z_limits_um)
        self._moves(z_um=z_um if label == self._device.get_focus_device() else None)
        self._device.set_relative_position(*args)
        self._note()

    def set_xy_position(self, *args: Any) -> None:
        self._within_xy(args[-2], args[-1])
        self._moves(xy_um=(args[-2], args[-1]))
        self._device.set_xy_position(*args)
        self._note()

    def set_relative_xy_position(self, *args: Any) -> None:
        x_um, y_um = self._device.get_xy_position()
        self._within_xy(x_um + args[-2], y_um + args[-1])
        self._moves(xy_um=(x_um + args[-2], y_um + args[-1]))
        self._device.set_relative_xy_position(*args)
        self._note()

    def set_property(self, label: str, name: str, value: Any) -> None:
        if name == "Position" and label == self._device.get_focus_device():
            self._within(label, float(value), self._settings.z_limits_um)
            self._moves(z_um=float(value))
        self._device.set_property(label, name, value)
        self._note()

    def _moves(self, *, xy_um: tuple[float, float] | None = None, z_um: float | None = None) -> None:
        start_um = read_stages(self._device, self._origin_um)
        x_um, y_um, there_um = start_um
        if xy_um is not None:
            x_um, y_um = xy_um[0] + self._origin_um[0], xy_um[1] + self._origin_um[1]
        target_um = (x_um, y_um, there_um if z_um is None else z_um)
        self._faults.offsets.start_move(time.perf_counter(), start_um, target_um)

    def _focus(self, label: tuple[str, ...]) -> str:
        return label[0] if label else str(self._device.get_focus_device())

    def _within_xy(self, x_um: float, y_um: float) -> None:
        label = self._device.get_xy_stage_device()
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
