"""An endless, seeded culture of neurons, seen through wave optics, that knows its own truth."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import fft

from acq_isl.life import Life
from acq_isl.sim.illumination import PhaseContrast, Transmitted
from acq_isl.sim.life import Moment, moment
from acq_isl.sim.neurons import grow_region
from acq_isl.sim.optics import ExitFields, Imaging
from acq_isl.sim.specimen_aging import aged
from acq_isl.sim.specimen_objects import LAYER_HEIGHTS_UM, REACH_UM, REGION_UM, Culture, Region
from acq_isl.sim.specimen_raster import LATTICE_UM, Raster, Window, rasterise
from acq_isl.sim.specimen_sensor import Sensor, on_sensor
from acq_isl.sim.truth import CellTruth, Rectangle, cells_of
from acq_isl.sim.view import UNTOUCHED, History, View
from acq_isl.stack import Float32Image

FOCUS_UM = 4.0
"""Height above the glass that is in focus at ``z_um = 0``: the middle of the cells."""
_MARGIN_UM = 16.0
_LEAST_UM = 96.0
_GRID_UM_NA = 0.196  # 0.4 um at NA .49
_NATIVE_UM = 0.3
_BACKGROUND = 0.5
_STAIN_LIGHT = 0.75
_STAIN_BACKGROUND = 0.02
_STAINS = {"DAPI": "nuclei", "MAP2": "dendrites", "NFH": "axons", "PI": "dead"}
_REGIONS_KEPT = 32
_FIELDS_KEPT = 6

T = TypeVar("T")


class _Bounded:
    """Remembers what was made last; the oldest is forgotten. Not locked: its owner does that."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, object] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, eq=False)
class _Field:
    """A field of view made ready for any focus."""

    imaging: Imaging
    fields: ExitFields
    rows: Float32Image
    columns: Float32Image


class SyntheticSpecimen:
    """Neurons on glass, unbounded in x and y, the same wherever one looks first. Safe to use from threads.

    What is seen depends on seed, place, time and what was done to the specimen (both in the `View`), not
    on what was looked at before.
    Transmitted light by `acq_isl.sim.optics`; stained channels as a confocal microscope sees them, with
    a blur and a loss of light that grow with defocus. No noise: the camera adds it. Objectives are told
    apart by their pixel size: apertures scale as (0.3 um / unbinned pixel)^0.7, which gives NA .30 at
    10x, .49 at 20x and .80 at 40x.

    Parameters
    ----------
    seed : int
    optics : PhaseContrast or Oblique
        At 0.3 um per unbinned pixel.
    culture : Culture
    sensor : Sensor
        Dust and grain that stay in place on the camera, in the first channel only.
    life : Life
        By default nothing changes with time.
    """

    def __init__(
        self,
        seed: int = 0,
        optics: Transmitted | None = None,
        culture: Culture | None = None,
        sensor: Sensor | None = None,
        life: Life | None = None,
    ) -> None:
        self.seed = seed
        self.optics = optics or PhaseContrast()
        self.culture = culture or Culture()
        self.life = life or Life()
        self._pattern = (sensor or Sensor(seed)).pattern()
        self._lock = threading.Lock()
        self._regions = _Bounded(_REGIONS_KEPT)
        self._rasters = _Bounded(_FIELDS_KEPT)
        self._fields = _Bounded(_FIELDS_KEPT)

    @property
    def channels(self) -> tuple[str, ...]:
        """Phase contrast first, then the stains."""
        return ("Phase", *_STAINS)

    def render(self, view: View) -> Float32Image:
        """Noise-free light, (y, x) float32; empty medium is 0.5 in transmitted light, 0.02 in a stain.

        A channel that is not one of `channels` is dark.
        """
        if view.channel == self.channels[0]:
            return self._transmitted(view)
        if view.channel in _STAINS:
            blur_um = float(np.hypot(0.12, 0.2 * view.z_um))
            light = self._resampled(view, _STAINS[view.channel], blur_um)
            in_section = 1 / (1 + (view.z_um / 5.0) ** 2)
            return _STAIN_BACKGROUND + np.float32(_STAIN_LIGHT * in_section) * light
        return np.zeros(view.shape, np.float32)

    def truth(self, view: View) -> dict[str, Float32Image]:
        """True ``nuclei``, ``dendrites``, ``axons`` and ``dead``, each (y, x) float32 in 0..1, at any z."""
        return {label: self._resampled(view, label, 0.0).clip(0, 1) for label in _STAINS.values()}

    def path(self, view: View) -> Float32Image:
        """True optical path of all layers together in um, (y, x) float32, on the view's pixels."""
        return self._resampled(view, "path_um", 0.0)

    @property
    def labels(self) -> Mapping[str, str]:
        """Stain that shows each label."""
        return {label: stain for stain, label in _STAINS.items()}

    def cells(
        self, area: Rectangle, time_s: float = 0.0, history: History = UNTOUCHED
    ) -> tuple[CellTruth, ...]:
        """All cells with their middle in an area, and the remains of dead ones, at a time."""
        now = moment(self.life, time_s, history)
        with self._lock:
            # Cells drift over the borders of their region, but not as far as neurites reach.
            regions = list(self._around(area.left, area.top, area.right, area.bottom))
        return tuple(
            cell
            for region in regions
            for cell in cells_of(aged(region, self.seed, self.life, now), self.culture.height, FOCUS_UM)
            if area.holds(cell.x_um, cell.y_um)
        )

    def _transmitted(self, view: View) -> Float32Image:
        with self._lock:
            now = moment(self.life, view.time_s, view.history)
            key = (view.x_um, view.y_um, view.pixel_size_um, view.shape, view.binning, now)
            field = self._fields.get(key, lambda: self._prepare(view))
        image = field.imaging.image(field.fields, view.z_um + FOCUS_UM)
        light = np.clip(_through(field.rows, image, field.columns), 0, None)
        static = on_sensor(self._pattern, view.sensor_origin_px, view.shape, view.binning)
        lit: Float32Image = np.float32(_BACKGROUND) * light * (1 + static)
        return lit

    def _prepare(self, view: View) -> _Field:
        optics = self.optics.scaled((_NATIVE_UM * view.binning / view.pixel_size_um) ** 0.7)
        grid_um = _GRID_UM_NA / optics.numerical_aperture
        sides = [
            fft.next_fast_len(int(np.ceil((extent + 2 * _MARGIN_UM) / grid_um))) for extent in _extents(view)
        ]
        window, raster = self._raster(view)
        starts = _starts(view, window, LATTICE_UM)
        imaging = Imaging(optics, (sides[0], sides[1]), grid_um, _heights(self.culture))
        to_grid = [
            _lanczos(_centred(side, grid_um) + start, LATTICE_UM, count, grid_um)
            for side, start, count in zip(sides, starts, (window.rows, window.columns), strict=True)
        ]
        path = _through(to_grid[0], raster.path_um, to_grid[1])
        pixel = view.pixel_size_um
        to_camera = [
            _lanczos(_centred(out, pixel) + (side - 1) / 2 * grid_um, grid_um, side, pixel)
            for out, side in zip(view.shape, sides, strict=True)
        ]
        return _Field(imaging, imaging.exit_fields(path), to_camera[0], to_camera[1])

    def _raster(self, view: View) -> tuple[Window, Raster]:
        # 4 um more than the optics need: the grid is rounded up to a good FFT length.
        reach = [extent * 1.04 / 2 + _MARGIN_UM + 4.0 for extent in _extents(view)]
        row, column = (int((c - r) // LATTICE_UM) for c, r in zip((view.y_um, view.x_um), reach, strict=True))
        rows, columns = (int(np.ceil(2 * r / LATTICE_UM)) + 1 for r in reach)
        window = Window(row, column, rows, columns)
        now = moment(self.life, view.time_s, view.history)
        return window, self._rasters.get((window, now), lambda: self._draw(window, now))

    def _draw(self, window: Window, now: Moment | None) -> Raster:
        left, top = window.column * LATTICE_UM, window.row * LATTICE_UM
        right, bottom = left + window.columns * LATTICE_UM, top + window.rows * LATTICE_UM
        regions = (
            aged(region, self.seed, self.life, now).region
            for region in self._around(left, top, right, bottom)
        )
        return rasterise(regions, window, self.seed, self.culture)

    def _around(self, left: float, top: float, right: float, bottom: float) -> Iterator[Region]:
        """Regions of which something may lie in a rectangle in um."""

        def touched(low: float, high: float) -> range:
            return range(int((low - REACH_UM) // REGION_UM), int((high + REACH_UM) // REGION_UM) + 1)

        for row in touched(top, bottom):
            for column in touched(left, right):
                yield self._region(column, row)

    def _region(self, column: int, row: int) -> Region:
        return self._regions.get((column, row), lambda: grow_region(self.seed, column, row, self.culture))

    def _resampled(self, view: View, what: str, blur_um: float) -> Float32Image:
        with self._lock:
            window, raster = self._raster(view)
        source: Float32Image = raster.path_um.sum(axis=0) if what == "path_um" else getattr(raster, what)
        starts = _starts(view, window, LATTICE_UM)
        maps = []
        for side, start, count in zip(view.shape, starts, (window.rows, window.columns), strict=True):
            at = _centred(side, view.pixel_size_um) + start
            maps.append(
                _gaussian(at, LATTICE_UM, count, blur_um)
                if blur_um > 0.5 * max(LATTICE_UM, view.pixel_size_um)
                else _lanczos(at, LATTICE_UM, count, view.pixel_size_um)
            )
        return _through(maps[0], source, maps[1])


def _through(rows: Float32Image, image: Float32Image, columns: Float32Image) -> Float32Image:
    """Resample the last two axes of an image by one matrix each."""
    resampled: Float32Image = (rows @ image @ columns.T).astype(np.float32, copy=False)
    return resampled


def _heights(culture: Culture) -> tuple[float, ...]:
    return tuple(culture.height * height for height in LAYER_HEIGHTS_UM)


def _extents(view: View) -> tuple[float, float]:
    """Height and width to simulate in um, not so small that the ring's far halo wraps round the grid."""
    height, width = (max(side * view.pixel_size_um, _LEAST_UM) for side in view.shape)
    return height, width


def _centred(count: int, step_um: float) -> Float32Image:
    return ((np.arange(count) - (count - 1) / 2) * step_um).astype(np.float32)


def _starts(view: View, window: Window, step_um: float) -> tuple[float, float]:
    """The view's middle in um from the middle of the window's first pixel: y, x."""
    return (
        view.y_um - (window.row + 0.5) * step_um,
        view.x_um - (window.column + 0.5) * step_um,
    )


def _lanczos(at_um: Float32Image, step_um: float, count: int, out_step_um: float) -> Float32Image:
    """Matrix that resamples ``count`` samples at the given places; a low pass when it makes fewer."""
    width = max(step_um, out_step_um)
    distance = (at_um[:, None] - (np.arange(count) * step_um)[None]) / width
    weights = np.sinc(distance) * np.sinc(distance / 3) * (np.abs(distance) < 3)
    matrix: Float32Image = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def _gaussian(at_um: Float32Image, step_um: float, count: int, sigma_um: float) -> Float32Image:
    weights = np.exp(-0.5 * ((at_um[:, None] - (np.arange(count) * step_um)[None]) / sigma_um) ** 2)
    matrix: Float32Image = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix
