"""A field of view in transmitted light, made ready for any focus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft

from acq_isl.sim.optics.illumination import Transmitted
from acq_isl.sim.optics.resampling import centred_positions, lanczos_matrix, resample
from acq_isl.sim.optics.wave_optics import ExitFields, Imaging
from acq_isl.sim.view import View
from acq_isl.stack import Float32Image

MARGIN_UM = 16.0
"""Specimen around the view that shines into it."""
_LEAST_UM = 96.0


@dataclass(frozen=True, slots=True, eq=False)
class Matter:
    """Optical path around a view, (layer, y, x); the view's middle from that of the first pixel (y, x)."""

    path_um: Float32Image
    step_um: float
    middle_um: tuple[float, float]
    heights_um: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TransmittedField:
    """Fields behind the specimen and the way from them to camera pixels; threads may share it."""

    imaging: Imaging
    fields: ExitFields
    rows: Any
    columns: Any
    static: Float32Image

    def light(self, z_um: float) -> Float32Image:
        """Light relative to empty medium with the focus ``z_um`` above the glass, (y, x) float32."""
        image = self.imaging.image(self.fields, z_um)
        light = resample(self.rows, image, self.columns)
        np.maximum(light, 0, out=light)
        light *= self.static
        return light


def extents_um(view: View) -> tuple[float, float]:
    """Height and width to simulate in um, not so small that the ring's far halo wraps round the grid."""
    height, width = (max(side * view.pixel_size_um, _LEAST_UM) for side in view.shape)
    return height, width


def prepare(optics: Transmitted, view: View, matter: Matter, static: Float32Image) -> TransmittedField:
    """Pass the light through the specimen, all but the focus; ``static`` (y, x) multiplies the light."""
    grid_um = optics.grid_um_na / optics.numerical_aperture
    sides = [
        fft.next_fast_len(int(np.ceil((extent + 2 * MARGIN_UM) / grid_um))) for extent in extents_um(view)
    ]
    imaging = Imaging(optics, (sides[0], sides[1]), grid_um, matter.heights_um)
    to_grid = [
        lanczos_matrix(centred_positions(side, grid_um) + start, matter.step_um, count, grid_um)
        for side, start, count in zip(sides, matter.middle_um, matter.path_um.shape[1:], strict=True)
    ]
    path = resample(to_grid[0], matter.path_um, to_grid[1])
    pixel = view.pixel_size_um
    rows, columns = (
        lanczos_matrix(centred_positions(out, pixel) + (side - 1) / 2 * grid_um, grid_um, side, pixel)
        for out, side in zip(view.shape, sides, strict=True)
    )
    return TransmittedField(imaging, imaging.exit_fields(path), rows, columns, static)
