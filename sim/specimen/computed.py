"""What all specimens that are computed have in common: seen through wave optics, they know their truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from acq_isl.sim.optics.fluorescence import Stain, StainedField, Widefield
from acq_isl.sim.optics.illumination import Transmitted, describe_optics
from acq_isl.sim.optics.resampling import centred_positions, lanczos_matrix, resample
from acq_isl.sim.optics.transmitted import MARGIN_UM, Matter, TransmittedField, extents_um, prepare
from acq_isl.sim.specimen.cache import ResultCache
from acq_isl.sim.specimen.culture import Moment
from acq_isl.sim.specimen.dose import DoseMap
from acq_isl.sim.specimen.raster import GRID_UM, Raster, Window
from acq_isl.sim.specimen.sensor import Sensor, on_sensor
from acq_isl.sim.view import View
from acq_isl.stack import Float32Image

_NATIVE_UM = 0.3
_BACKGROUND = 0.5
_STAIN_LIGHT = 0.75
_STAIN_BACKGROUND = 0.02
_FIELDS_KEPT = 5


class ComputedSpecimen:
    """Matter in layers on glass, unbounded in x and y, the same wherever one looks first.

    Safe to use from threads. Transmitted light by `acq_isl.sim.optics.wave_optics`, stains in wide-field
    fluorescence, which bleaches; no noise: the camera adds it. The pixel size tells objectives apart:
    apertures scale as (0.3 um / unbinned pixel)^0.7, which gives NA .30 at 10x, .49 at 20x and .80 at 40x.

    ``optics`` are those at 0.3 um per unbinned pixel; the dust and grain of ``sensor`` stay in place on the
    camera, in the first channel only. ``levels`` are the heights of the layers above the glass and the one
    in focus at ``z_um = 0``, in um. Kinds of specimens say what lies in a window.
    """

    def __init__(
        self,
        seed: int,
        optics: Transmitted,
        sensor: Sensor,
        stains: tuple[Stain, ...],
        levels: tuple[tuple[float, ...], float],
    ) -> None:
        self.seed = seed
        self.optics = optics
        self._heights_um, self._focus_um = levels
        self._pattern = sensor.pattern()
        self._stains = {stain.channel: stain for stain in stains}
        self._rasters: ResultCache[Raster] = ResultCache(_FIELDS_KEPT)
        self._fields: ResultCache[TransmittedField] = ResultCache(_FIELDS_KEPT)
        self._stained_fields: ResultCache[tuple[StainedField, Window]] = ResultCache(_FIELDS_KEPT)

    @property
    def channels(self) -> tuple[str, ...]:
        """``Phase``, which is transmitted light of any kind, first; then the stains."""
        return ("Phase", *self._stains)

    @property
    def metadata(self) -> Mapping[str, str]:
        """Optics (at 0.3 um per unbinned pixel) and seed, for the metadata of each image."""
        return {"SimulatedOptics": describe_optics(self.optics), "SimulatedSeed": str(self.seed)}

    def render(self, view: View) -> Float32Image:
        """Noise-free light, (y, x) float32; empty medium is 0.5 in transmitted light, 0.02 in a stain.

        A channel that is not one of `channels` is dark.
        """
        if view.channel == self.channels[0]:
            light = self._field(view).light(view.z_um + self._focus_um)
            light *= np.float32(_BACKGROUND)
            return light
        if view.channel in self._stains:
            return self._fluorescent(view, self._stains[view.channel])
        return np.zeros(view.shape, np.float32)

    def truth(self, view: View) -> dict[str, Float32Image]:
        """True label images by name, each (y, x) float32 in 0..1, at any z."""
        window, raster = self._raster(view)
        return {
            stain.label: self._on_pixels(view, window, raster.labels[stain.label]).clip(0, 1)
            for stain in self._stains.values()
        }

    def prepare(self, view: View) -> None:
        """Do what pictures at this place have in common at any focus, so that `render` has less to do."""
        if view.channel == self.channels[0]:
            self._field(view)
        elif view.channel in self._stains:
            self._stained(view, self._stains[view.channel])

    def _field(self, view: View) -> TransmittedField:
        return self._fields.get(self._key(view), lambda: self._prepare(view))

    def _key(self, view: View) -> tuple[object, ...]:
        place = (view.x_um, view.y_um, view.pixel_size_um, view.shape)
        now = self._moment(view)
        return (*place, view.sensor_origin_px, view.binning, now)

    def _prepare(self, view: View) -> TransmittedField:
        window, raster = self._raster(view)
        matter = Matter(raster.path_um, GRID_UM, _middle_um(view, window), self._heights_um)
        static = 1 + on_sensor(self._pattern, view.sensor_origin_px, view.shape, view.binning)
        return prepare(self._objective(view), view, matter, static)

    def _objective(self, view: View) -> Transmitted:
        return self.optics.scaled((_NATIVE_UM * view.binning / view.pixel_size_um) ** 0.7)

    def _fluorescent(self, view: View, stain: Stain) -> Float32Image:
        microscope = Widefield(self._objective(view).numerical_aperture, self.optics.medium_index)
        field, window = self._stained(view, stain)
        image = field.image(microscope, stain.emission_um, view.z_um + self._focus_um)
        light = np.float32(_STAIN_LIGHT) * self._on_pixels(view, window, image)
        dose = DoseMap.of(view.history.light, stain.channel).project(view)
        if dose is not None:
            light *= np.exp(-dose / np.float32(stain.lifetime_ms))
        lit: Float32Image = np.maximum(light, 0) + np.float32(_STAIN_BACKGROUND)
        return lit

    def _stained(self, view: View, stain: Stain) -> tuple[StainedField, Window]:
        def make() -> tuple[StainedField, Window]:
            window, raster = self._raster(view)
            label = raster.labels[stain.label]
            return StainedField.of(label, raster.path_um, GRID_UM, self._heights_um), window

        return self._stained_fields.get((stain, *self._key(view)), make)

    def _raster(self, view: View) -> tuple[Window, Raster]:
        # 4 um more than the optics need: the grid is rounded up to a good FFT length.
        reach = [extent * 1.04 / 2 + MARGIN_UM + 4.0 for extent in extents_um(view)]
        row, column = (int((c - r) // GRID_UM) for c, r in zip((view.y_um, view.x_um), reach, strict=True))
        rows, columns = (int(np.ceil(2 * r / GRID_UM)) + 1 for r in reach)
        window = Window(row, column, rows, columns)
        now = self._moment(view)
        return window, self._rasters.get((window, now), lambda: self._draw(window, now))

    def _moment(self, view: View) -> Moment | None:
        """When what changes with time is seen; None: nothing has changed."""
        return None

    def _draw(self, window: Window, now: Moment | None) -> Raster:
        raise NotImplementedError

    def _on_pixels(self, view: View, window: Window, source: Float32Image) -> Float32Image:
        starts = _middle_um(view, window)
        rows, columns = (
            lanczos_matrix(
                centred_positions(side, view.pixel_size_um) + start, GRID_UM, count, view.pixel_size_um
            )
            for side, start, count in zip(view.shape, starts, source.shape, strict=True)
        )
        return resample(rows, source, columns)


def _middle_um(view: View, window: Window) -> tuple[float, float]:
    """The view's middle from the middle of the window's first pixel: y, x."""
    return view.y_um - (window.row + 0.5) * GRID_UM, view.x_um - (window.column + 0.5) * GRID_UM
