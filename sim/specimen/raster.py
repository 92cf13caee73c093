"""Regions of a culture become optical path and label images on the specimen's own pixel grid."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, special

from acq_isl.sim.specimen.cells import (
    LAYER_HEIGHTS_UM,
    RADII_UM,
    STEP_UM,
    Beads,
    Cell,
    Culture,
    Region,
    Singles,
    Strokes,
    join,
    select,
)
from acq_isl.stack import Float32Image

GRID_UM = 0.3
"""Pixel of the grid; pixel (0, 0) has its middle at x = y = GRID_UM / 2."""
PAD_PX = 48
_BLOCK_PX = 256
_LAYERS = len(LAYER_HEIGHTS_UM)


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of grid pixels: first row and column, and their numbers."""

    row: int
    column: int
    rows: int
    columns: int

    @property
    def edges_um(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        left, top = self.column * GRID_UM, self.row * GRID_UM
        return left, top, left + self.columns * GRID_UM, top + self.rows * GRID_UM

    def grown(self, pad: int) -> Window:
        return Window(self.row - pad, self.column - pad, self.rows + 2 * pad, self.columns + 2 * pad)


@dataclass(frozen=True, slots=True, eq=False)
class Raster:
    """Optical path differences (layer, y, x) in a window, and true labels (y, x), 0..1, by name."""

    path_um: Float32Image
    labels: Mapping[str, Float32Image]


def draw_raster(regions: Iterable[Region], window: Window, seed: int, culture: Culture) -> Raster:
    """Draw all regions that reach into a window. Neighbouring windows agree where they overlap."""
    big = window.grown(PAD_PX)
    path = np.zeros((_LAYERS, big.rows, big.columns), np.float32)
    soma = np.zeros_like(path)
    nuclei = np.zeros(path.shape[1:], np.float32)
    bodies, dead = np.zeros_like(nuclei), np.zeros_like(nuclei)
    regions = tuple(regions)
    for region in regions:
        for cell in region.cells:
            _draw_cell(cell, big, soma, (nuclei, bodies, dead))
        draw_beads(region.beads, big, path, (nuclei, bodies, dead))
    texture = draw_noise(big, (seed, 1))
    grain = 0.14 * blur_noise(texture, 1.2) + 0.12 * blur_noise(texture, 2.5)
    path += soma * (1 + grain)
    lines, dendrites, axons = _draw_strokes(regions, big)
    path += lines
    carpet = draw_noise(big, (seed, 2))
    for sigma, amount in ((10.0, 0.006), (2.5, 0.0016)):
        path[0] += culture.carpet * amount * blur_noise(carpet, sigma)
    cut = (slice(PAD_PX, -PAD_PX), slice(PAD_PX, -PAD_PX))
    labels = {
        "nuclei": resolve(nuclei * (1 + 0.6 * grain), cut),
        "dendrites": resolve(np.maximum(bodies, dendrites), cut),
        "axons": resolve(np.maximum(axons, 0.06 * bodies), cut),
        "dead": resolve(dead, cut),
    }
    return Raster(np.ascontiguousarray(path[(slice(None), *cut)]), labels)


def resolve(image: NDArray[np.floating], cut: tuple[slice, slice]) -> Float32Image:
    # What a fluorescence microscope resolves of it: about 0.3 um.
    resolved: Float32Image = np.clip(ndimage.gaussian_filter(image, 0.9)[cut], 0, 1).astype(np.float32)
    return resolved


def blur_noise(white: Float32Image, sigma: float) -> Float32Image:
    """White noise blurred by a Gaussian, which leaves the variance 1 / (4 pi sigma^2), brought back to 1."""
    noise: Float32Image = ndimage.gaussian_filter(white, sigma) * np.float32(2 * np.sqrt(np.pi) * sigma)
    return noise


def draw_noise(window: Window, key: tuple[int, int]) -> Float32Image:
    """White noise that belongs to the plane, not to the window: drawn per block of the grid."""
    out = np.empty((window.rows, window.columns), np.float32)
    blocks = (
        range(start // _BLOCK_PX, (start + count - 1) // _BLOCK_PX + 1)
        for start, count in ((window.row, window.rows), (window.column, window.columns))
    )
    for row, column in itertools.product(*blocks):
        place = [2 * abs(v) + (v < 0) for v in (row, column)]
        block = np.random.default_rng([*key, *place]).standard_normal((_BLOCK_PX, _BLOCK_PX), np.float32)
        top, left = row * _BLOCK_PX - window.row, column * _BLOCK_PX - window.column
        there = clip_patch(top, left, _BLOCK_PX, _BLOCK_PX, out.shape)
        if there is not None:
            target, source = there
            out[target] = block[source]
    return out


_Slices = tuple[slice, slice]


def clip_patch(
    top: int, left: int, rows: int, columns: int, shape: tuple[int, ...]
) -> tuple[_Slices, _Slices] | None:
    """Where a patch lands in an image and which part of the patch does; None if it misses."""
    r0, r1 = max(top, 0), min(top + rows, shape[0])
    c0, c1 = max(left, 0), min(left + columns, shape[1])
    if r0 >= r1 or c0 >= c1:
        return None
    return (slice(r0, r1), slice(c0, c1)), (slice(r0 - top, r1 - top), slice(c0 - left, c1 - left))


def place_patch(
    x_um: float, y_um: float, reach_um: float, window: Window
) -> tuple[int, int, NDArray[np.floating], NDArray[np.floating]]:
    """Top and left of a square patch about a point, and the offsets of its pixels from it in um."""
    reach = int(np.ceil(reach_um / GRID_UM)) + 2
    row, column = int(np.floor(y_um / GRID_UM)), int(np.floor(x_um / GRID_UM))
    span = np.arange(-reach, reach + 1)
    dy = (row + span + 0.5) * GRID_UM - y_um
    dx = (column + span + 0.5) * GRID_UM - x_um
    return row - reach - window.row, column - reach - window.column, dy, dx


def _draw_cell(
    cell: Cell, window: Window, soma: Float32Image, labels: tuple[Float32Image, Float32Image, Float32Image]
) -> None:
    top, left, dy, dx = place_patch(cell.x, cell.y, 1.35 * cell.long, window)
    there = clip_patch(top, left, len(dy), len(dx), soma.shape[1:])
    if there is None:
        return
    target, source = there
    y, x = dy[source[0], None], dx[None, source[1]]
    along = (np.cos(cell.angle) * x + np.sin(cell.angle) * y) / cell.long
    across = (np.cos(cell.angle) * y - np.sin(cell.angle) * x) / cell.short
    turn = np.arctan2(across, along)
    outline = 1 + sum(cell.wobble[k] * np.cos((k + 2) * turn + cell.wobble[k + 3]) for k in range(3))
    rho = np.hypot(along, across) / outline
    inner = rho / cell.nucleus
    dome = np.sqrt(np.clip(1 - rho**2, 0, None)) * cell.thickness
    core = np.sqrt(np.clip(1 - inner**2, 0, None)) * cell.thickness * cell.nucleus
    soma[(cell.layer, *target)] += (cell.index * dome + cell.nucleus_index * core).astype(np.float32)
    edge = 0.35 / cell.short
    nuclei, bodies, dead = labels
    nucleus = special.expit((cell.nucleus - rho) / edge)
    brighten(nuclei, target, cell.dna * nucleus)
    if cell.dead > 0:
        brighten(dead, target, cell.dead * nucleus)
    filled = special.expit((1 - rho) / edge) * (0.75 + 0.25 * rho.clip(0, 1))
    brighten(bodies, target, cell.mtubules * filled)


def brighten(image: Float32Image, target: tuple[slice, slice], light: NDArray[np.floating]) -> None:
    # A maximum, as in the confocal maximum projections that truth is made from: discs stay separate.
    np.maximum(image[target], light, out=image[target], casting="same_kind")


def draw_beads(
    beads: Beads, window: Window, path: Float32Image, labels: tuple[Float32Image, Float32Image, Float32Image]
) -> None:
    column, row = beads.x / GRID_UM - window.column, beads.y / GRID_UM - window.row
    reach = beads.radius / GRID_UM + 3
    near = (column > -reach) & (column < window.columns + reach)
    near &= (row > -reach) & (row < window.rows + reach)
    for i in np.flatnonzero(near):
        radius = float(beads.radius[i])
        top, left, dy, dx = place_patch(float(beads.x[i]), float(beads.y[i]), radius, window)
        there = clip_patch(top, left, len(dy), len(dx), path.shape[1:])
        if there is None:
            continue
        target, source = there
        square = dy[source[0], None] ** 2 + dx[None, source[1]] ** 2
        chord = 2 * np.sqrt(np.clip(radius**2 - square, 0, None))
        path[(int(beads.layer[i]), *target)] += (beads.index[i] * chord).astype(np.float32)
        for image, light in zip(labels, (beads.dna[i], beads.mtubules[i], beads.dead[i]), strict=True):
            if light > 0:
                brighten(image, target, light * special.expit((radius - np.sqrt(square)) / 0.3))


def _draw_strokes(
    regions: Iterable[Region], window: Window
) -> tuple[Float32Image, Float32Image, Float32Image]:
    """Neurites as sums of discs, in Fourier space: path in um per layer, the dendrite and the axon label.

    The integral of a disc's indicator along a path is the chord 2 sqrt(r^2 - d^2), the thickness of a
    cylinder: so points along a path, convolved with a disc, are an exactly cylindrical neurite.
    """
    shape = (fft.next_fast_len(window.rows, True), fft.next_fast_len(window.columns, True))
    f = np.hypot(fft.fftfreq(shape[0], GRID_UM)[:, None], fft.rfftfreq(shape[1], GRID_UM)[None])
    f = f.astype(np.float32)
    # Half a pixel of blur keeps the discs of less than a pixel from ringing.
    soft = np.exp(-2 * (np.pi * 0.5 * GRID_UM * f) ** 2).astype(np.float32)
    path = np.zeros((_LAYERS, *f.shape), np.complex64)
    labels = np.zeros((2, *f.shape), np.complex64)
    places, tables = zip(*(_near(region, window) for region in regions), strict=True)
    row, column = np.concatenate(places, axis=1)
    strokes = functools.reduce(join, tables)
    for size, radius in enumerate(RADII_UM):
        drawn = strokes.radius == size
        if not drawn.any():
            continue
        disc = soft * _disc_spectrum(f, radius)
        for layer in range(_LAYERS):
            pick = drawn & (strokes.layer == layer)
            path[layer] += disc * _splat(row[pick], column[pick], strokes.index[pick], shape)
        for at, weight in enumerate((strokes.dendrite, strokes.axon)):
            labels[at] += disc * _splat(row[drawn], column[drawn], weight[drawn], shape)
    scale, cut = STEP_UM / GRID_UM**2, (slice(None), slice(window.rows), slice(window.columns))
    thick = fft.irfft2(labels, shape)[cut] * scale
    saturation = np.array([1.6, 0.9], np.float32)[:, None, None]
    dendrites, axons = (1 - np.exp(-np.clip(thick, 0, None) / saturation)).astype(np.float32)
    return (fft.irfft2(path, shape)[cut] * scale).astype(np.float32), dendrites, axons


def _near(region: Region, window: Window) -> tuple[NDArray[np.floating], Strokes]:
    """Rows and columns (2, point) of the points of a region in a window, and the points."""
    strokes = region.strokes
    column = (strokes.x + region.x) / GRID_UM - 0.5 - window.column
    row = (strokes.y + region.y) / GRID_UM - 0.5 - window.row
    near = (column >= 0) & (column < window.columns - 1) & (row >= 0) & (row < window.rows - 1)
    return np.stack([row[near], column[near]]), select(strokes, near)


def _splat(
    row: NDArray[np.floating], column: NDArray[np.floating], weight: Singles, shape: tuple[int, int]
) -> NDArray[np.complex64]:
    """Spectrum of weighted points, each shared by the four pixels around it."""
    row, column = row.astype(np.float64), column.astype(np.float64)
    r, c = row.astype(np.intp), column.astype(np.intp)
    v, u = row - r, column - c
    base = r * shape[1] + c
    where = np.concatenate([base, base + 1, base + shape[1], base + shape[1] + 1])
    share = np.concatenate([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u]) * np.tile(weight, 4)
    image = np.bincount(where, share, shape[0] * shape[1]).astype(np.float32)
    spectrum: NDArray[np.complex64] = fft.rfft2(image.reshape(shape))
    return spectrum


def _disc_spectrum(f: Float32Image, radius_um: float) -> Float32Image:
    """Fourier transform r J1(2 pi r f) / f of a disc's indicator, in um^2."""
    argument = 2 * np.pi * radius_um * np.maximum(f, 1e-6)
    spectrum: Float32Image = (2 * np.pi * radius_um**2 * special.j1(argument) / argument).astype(np.float32)
    return spectrum
