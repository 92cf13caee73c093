"""How much light each place of a specimen has met."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from acq_isl.sim.view import Light, View
from acq_isl.stack import Float32Image

_Area = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class DoseMap:
    """Total illumination: (left, top, right, bottom) in um and a dose in ms of nominal light; doses add up.

    Light of a wide-field microscope passes the whole depth, so height does not matter.
    """

    areas: tuple[tuple[_Area, float], ...] = ()

    @classmethod
    def of(cls, light: Iterable[Light], channel: str | None = None) -> DoseMap:
        """Sum exposures, those of one channel or of all. Exposures of the same area become one."""
        total: defaultdict[_Area, float] = defaultdict(float)
        for exposure in light:
            if channel is None or exposure.channel == channel:
                x_um, y_um = exposure.x_um, exposure.y_um
                width, height = exposure.width_um / 2, exposure.height_um / 2
                area = (x_um - width, y_um - height, x_um + width, y_um + height)
                total[area] += exposure.dose_ms
        return cls(tuple(total.items()))

    def project(self, view: View) -> Float32Image | None:
        """Dose on the pixels of a view in ms, (y, x) float32; None where no light was."""
        image: Float32Image | None = None
        for (left, top, right, bottom), dose in self.areas:
            rows = _covered(view.y_um, top, bottom, view.shape[0], view.pixel_size_um)
            columns = _covered(view.x_um, left, right, view.shape[1], view.pixel_size_um)
            if rows.any() and columns.any():
                image = np.zeros(view.shape, np.float32) if image is None else image
                image += np.float32(dose) * rows[:, None] * columns[None]
        return image


def _covered(middle_um: float, low_um: float, high_um: float, count: int, pixel_um: float) -> Float32Image:
    """Share of each pixel of an axis that lies between two places."""
    left = middle_um + (np.arange(count) - count / 2) * pixel_um
    share = (np.minimum(left + pixel_um, high_um) - np.maximum(left, low_um)) / pixel_um
    covered: Float32Image = np.clip(share, 0, 1).astype(np.float32)
    return covered
