"""What camera and specimen agree on: a view, what was done to a specimen, and what a specimen can do."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pydantic import Field

from acq_isl.base import StrictModel
from acq_isl.stack import Float32Image


class CameraSettings(StrictModel):
    """An sCMOS-like camera, in electrons."""

    full_well_e: float = Field(default=30_000.0, gt=0)
    """What reaches the largest count. Light 1.0 at the nominal exposure gives that many."""
    offset_e: float = Field(default=50.0, ge=0)
    """Electrons' worth of counts that a dark frame shows."""
    read_noise_e: float = Field(default=1.6, ge=0)
    """Standard deviation of the readout."""
    shot_noise: bool = True
    """Whether photons arrive at random. Off for a recorded specimen, whose images hold their noise."""
    hot_pixels: float = Field(default=0.0, ge=0, lt=1)
    """Share of pixels that gain electrons without light; always the same ones of the sensor."""
    hot_e_per_s: float = Field(default=20_000.0, ge=0)
    """Mean of what they gain in a second, exponentially distributed."""

    @classmethod
    def noiseless(cls) -> CameraSettings:
        """A camera that adds nothing: light 1.0 is the largest count, 0.0 is count 0."""
        return cls(offset_e=0.0, read_noise_e=0.0, shot_noise=False)


@dataclass(frozen=True, slots=True)
class Light:
    """An exposure, as the specimen met it.

    ``time_s`` is the specimen's at its start; ``x_um`` and ``y_um`` lie under the middle of what was lit;
    ``dose_ms`` is exposure times brightness of the lamp.
    """

    time_s: float
    x_um: float
    y_um: float
    z_um: float
    height_um: float
    width_um: float
    channel: str
    dose_ms: float


@dataclass(frozen=True, slots=True)
class Drug:
    """From ``time_s`` on the medium holds this much of the drug: 1 is the ordinary dose, 0 washes it out."""

    time_s: float
    dose: float


@dataclass(frozen=True, slots=True)
class History:
    """What was done to a specimen so far, both in order of time."""

    light: tuple[Light, ...] = ()
    drugs: tuple[Drug, ...] = ()

    def until(self, time_s: float) -> History:
        """The part of it that began before ``time_s``."""
        light = bisect.bisect_left(self.light, time_s, key=lambda light: light.time_s)
        drugs = bisect.bisect_right(self.drugs, time_s, key=lambda drug: drug.time_s)
        return History(self.light[:light], self.drugs[:drugs])


UNTOUCHED = History()


@dataclass(frozen=True, slots=True)
class View:
    """State of the microscope at the start of an exposure, as far as the image depends on it."""

    x_um: float
    y_um: float
    """Specimen position under the middle of the region of interest; row index grows with y, column with x."""
    z_um: float
    """Focus drive position."""
    channel: str
    """Preset of the channel group, such as ``"Phase"`` or ``"DAPI"``."""
    pixel_size_um: float
    """Edge of a (binned) pixel in the specimen."""
    shape: tuple[int, int]
    """Rows and columns of the image, after region of interest and binning."""
    sensor_origin_px: tuple[int, int] = (0, 0)
    """Row and column of the image's first pixel on the unbinned sensor; dust stays on it."""
    binning: int = 1
    time_s: float = 0.0
    """Age of the specimen since the microscope was opened; it may run faster than a clock."""
    history: History = UNTOUCHED


class Specimen(Protocol):
    """What lies on the stage. Implementations are deterministic and may cache within a bound."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels it can be seen in; the first is transmitted light."""

    def render(self, view: View) -> Float32Image:
        """Noise-free light for a view, (y, x) float32.

        1.0 fills the well at the nominal exposure of the channel. Outside of the specimen it is the
        empty medium, never an error.
        """

    def truth(self, view: View) -> dict[str, Float32Image]:
        """True label images by label name, such as ``nuclei``; each (y, x) float32 in 0..1."""


@runtime_checkable
class HasCamera(Protocol):
    """A specimen that says how it wants to be seen, as a recorded one whose pixels hold noise already."""

    @property
    def camera(self) -> CameraSettings:
        """Settings to use unless `acq_isl.sim.ScopeSettings.camera` says otherwise."""


@runtime_checkable
class HasMetadata(Protocol):
    """A specimen that adds to the metadata of each image."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Text by key; JSON where it has parts."""


@runtime_checkable
class Preparable(Protocol):
    """A specimen that can do part of its work before it is looked at."""

    def prepare(self, view: View) -> None:
        """Make ready for `render` at this place, at any focus; safe beside it in another thread."""
