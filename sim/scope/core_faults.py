"""The core's calls as they behave with planted faults."""

from __future__ import annotations

from typing import Any

from acq_isl.sim.scope.core_stages import with_both_names
from acq_isl.sim.scope.faults import PlantedFaults


@with_both_names
class FaultyCalls:
    """Overrides that let calls of the core fail as real devices do; put right in front of its class."""

    _faults: PlantedFaults
    _exposures: int

    @property
    def _core(self) -> Any:
        return super()  # the core itself

    def _now(self) -> tuple[int, float]:
        """Number of the next exposure, and seconds since the opening."""
        raise NotImplementedError

    def _ready(self, *devices: str) -> None:
        self._faults.wait_for(devices, self._core.get_timeout_ms(), *self._now())

    def _light_path(self) -> tuple[str, ...]:
        """Devices that must be ready for an exposure."""
        core = self._core
        return core.get_camera_device(), *((core.get_shutter_device(),) if core.get_auto_shutter() else ())

    def snap_image(self) -> None:
        self._ready(*self._light_path())
        self._core.snap_image()
        number, seconds = self._now()
        if self._faults.dropped(number - 1, seconds):
            camera = self._core.get_camera_device()
            raise RuntimeError(f'Error in device "{camera}": the exposure ended and no image arrived')

    def start_sequence_acquisition(self, *args: Any) -> None:
        self._ready(*self._light_path())
        self._core.start_sequence_acquisition(*args)

    def is_buffer_overflowed(self) -> bool:
        return self._faults.overflowed(*self._now()) or bool(self._core.is_buffer_overflowed())

    def set_config(self, group: str, preset: str) -> None:
        self._faults.set_preset(group, preset, *self._now())
        self._core.set_config(group, preset)

    def wait_for_device(self, label: str) -> None:
        self._ready(label)
        self._core.wait_for_device(label)

    def wait_for_config(self, group: str, preset: str) -> None:
        config = self._core.get_config_data(group, preset)
        self._ready(*(config.getSetting(index).getDeviceLabel() for index in range(config.size())))
        self._core.wait_for_config(group, preset)

    def wait_for_system(self) -> None:
        self._ready(*self._core.get_loaded_devices())
        self._core.wait_for_system()

    def device_busy(self, label: str) -> bool:
        return self._faults.busy(label, *self._now()) or bool(self._core.device_busy(label))
