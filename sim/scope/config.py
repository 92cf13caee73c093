"""What a simulated microscope is made of, and how its core is set up for a specimen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from acq_isl.base import StrictModel
from acq_isl.errors import ScopeError
from acq_isl.sim.view import CameraSettings

CONFIG_FILE = Path(__file__).with_name("simulated.cfg")
CHANNEL_GROUP, FILTER = "Channel", "Filter"
PERFUSION, DRUG = "Perfusion", "drug"
TRANSMITTED_SHUTTER, FLUORESCENCE_SHUTTER = "Transmitted Shutter", "Fluorescence Shutter"
AUTOFOCUS_STEP_UM = 0.025
"""What one step of the autofocus device's offset is; at 0 it focuses where z is 0 without any fault."""
AUTOFOCUS_REACH_UM = 50.0

_Z_TRAVEL_UM = 300.0  # DemoCamera's DStage refuses more
_FILTER_PLACES = 10  # DemoCamera's DWheel
# Magnification relative to the default objective, by the resolution names of simulated.cfg.
_RELATIVE_MAGNIFICATION = MappingProxyType({"10x": 0.5, "20x": 1.0, "40x": 2.0})

Limits = tuple[float, float]


class ChannelLight(StrictModel):
    """The exposure at which light 1.0 of the specimen fills the well, and the lamp relative to that."""

    nominal_exposure_ms: float = Field(default=50.0, gt=0)
    brightness: float = Field(default=1.0, ge=0)


class ScopeSettings(StrictModel):
    """Everything about a simulated microscope that is not the specimen."""

    shape: tuple[int, int] = (512, 512)
    """Rows and columns of the unbinned sensor."""
    bit_depth: Literal[8, 10, 12, 14, 16] = 16
    """Bits of the camera's digitizer at the start; the core property ``BitDepth`` changes it."""
    pixel_size_um: float = Field(default=0.3, gt=0)
    """Edge of an unbinned pixel in the specimen with the 20x objective; twice that at 10x, half at 40x."""
    x_limits_um: Limits = (-5000.0, 5000.0)
    y_limits_um: Limits = (-5000.0, 5000.0)
    z_limits_um: Limits = (-_Z_TRAVEL_UM, _Z_TRAVEL_UM)
    """Travel of the stages, in z at most +-300 um."""
    channels: Mapping[str, ChannelLight] = Field(
        default_factory=lambda: {"Phase": ChannelLight(nominal_exposure_ms=10.0)}
    )
    """Light of each channel by preset; a channel not named has a nominal exposure of 50 ms."""
    camera: CameraSettings | None = None
    """Default: the one the specimen asks for (`acq_isl.sim.view.HasCamera`), else an sCMOS."""
    seed: int = Field(default=0, ge=0)
    """Of the camera noise."""
    time_scale: float = Field(default=1.0, ge=0)
    """How many seconds pass for the specimen in one second."""
    prepare_ahead: int = Field(default=0, ge=0, le=4)
    """Fields of view that a second thread prepares in the direction of a scan; pictures are the same."""
    buffer_size_mb: int = Field(default=64, ge=1)
    """Circular buffer of the core. It is allocated at the start, so large ones cost time."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.shape) < 1:
            raise ValueError(f"shape must be at least 1 x 1 pixels, not {self.shape}")
        for axis, (low, high) in zip(
            "xyz", (self.x_limits_um, self.y_limits_um, self.z_limits_um), strict=True
        ):
            if not low < high:
                raise ValueError(f"{axis}_limits_um must grow, not {low} to {high}")
        if self.z_limits_um[0] < -_Z_TRAVEL_UM or self.z_limits_um[1] > _Z_TRAVEL_UM:
            raise ValueError(f"z_limits_um must lie within +-{_Z_TRAVEL_UM:g} um, not {self.z_limits_um}")
        return self

    def light(self, channel: str) -> ChannelLight:
        """Light of a channel, named in `channels` or not."""
        return self.channels.get(channel, ChannelLight())


def configure(core: Any, channels: tuple[str, ...], settings: ScopeSettings) -> None:
    """Set a core up for a specimen's channels, the first in transmitted light; ScopeError for too many."""
    rows, columns = settings.shape
    core.set_property("Camera", "OnCameraCCDXSize", columns)
    core.set_property("Camera", "OnCameraCCDYSize", rows)
    core.set_property("Camera", "BitDepth", settings.bit_depth)
    for name, magnification in _RELATIVE_MAGNIFICATION.items():
        core.set_pixel_size_um(name, settings.pixel_size_um / magnification)
    core.set_channel_group(CHANNEL_GROUP)
    _add_presets(core, channels)
    core.set_config(CHANNEL_GROUP, channels[0])
    core.set_exposure(settings.light(channels[0]).nominal_exposure_ms)
    core.wait_for_system()


def _add_presets(core: Any, channels: tuple[str, ...]) -> None:
    presets = tuple(core.get_available_configs(CHANNEL_GROUP))
    missing = [name for name in channels if name not in presets]
    if not channels or len(presets) + len(missing) > _FILTER_PLACES:
        raise ScopeError(
            "the specimen's channels do not fit the simulated filter wheel",
            wanted=f"1 to {_FILTER_PLACES} channels, {', '.join(presets)} included",
            got=", ".join(channels) or "none",
            fix="name channels of the specimen like the presets there are, or use fewer",
        )
    for place, name in enumerate(missing, start=len(presets)):
        core.define_state_label(FILTER, place, name)
        core.define_config(CHANNEL_GROUP, name, FILTER, "Label", name)
        shutter = TRANSMITTED_SHUTTER if name == channels[0] else FLUORESCENCE_SHUTTER
        core.define_config(CHANNEL_GROUP, name, "Core", "Shutter", shutter)
