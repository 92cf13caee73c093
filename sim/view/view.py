"""A view through the simulated microscope, and what was done to the specimen before."""

from __future__ import annotations

import bisect
from dataclasses import dataclass


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
