"""Transmitted light by wave optics: partially coherent images of a few layers of optical path.

Conventions: vacuum wavelength lambda, medium index n, spatial frequencies in cycles per um. A layer
transmits exp(i 2 pi / lambda * path). A source point at numerical aperture NA_s has the frequency
f_s = NA_s / lambda. Defocus by z multiplies the field with exp(i 2 pi z K(g)),
K(g) = sqrt((n/lambda)^2 - |g|^2) - n/lambda (angular spectrum; Goodman, Introduction to Fourier Optics,
ch. 3.10). The image is Abbe's: I(x) = sum_s w_s |F^-1[u_s(f) P(f + f_s)]|^2 / sum_s w_s |P(f_s)|^2 (Born &
Wolf ch. 10), with u_s the field behind the last layer (multi-slice; Cowley & Moodie 1957).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from acq_isl.sim.optics.illumination import DIC, Transmitted
from acq_isl.sim.optics.source import Source
from acq_isl.stack import Float32Image

Complex = NDArray[np.complex64]
Floats = NDArray[np.float64]

_SOFT = 0.03
_COARSE_NA = 0.345  # .31 cycles per um at NA .49 and .55 um


@dataclass(frozen=True, slots=True)
class Beam:
    """Light from one source point: its frequency in whole samples (y, x), wavelength, and weight."""

    sample: tuple[int, int]
    wavelength_um: float
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class CoarseField:
    """The coarse part of a field: a corner of the back focal plane's box, and whether its image is added."""

    beam: Beam
    rows: slice
    columns: slice
    spectrum: Complex
    sign: int


@dataclass(frozen=True, slots=True, eq=False)
class ExitFields:
    """Fields in the objective's back focal plane, one per source point, from which any focus follows.

    ``spectra`` is (s, my, mx) complex64, the pupil's middle in the array's middle, source weights included.
    """

    spectra: Complex
    coarse: tuple[CoarseField, ...] = ()


@dataclass(frozen=True, eq=False)
class Imaging:
    """Optics on a grid: layers become back-focal-plane fields, and these become images at any focus.

    The pupil is shifted by whole frequency samples, so all source points of one wavelength share one
    defocus factor per focus. A few source points err most where the specimen is coarse, so with
    ``coarse_points`` the same sum is computed again on a grid that holds coarse frequencies only, once with
    many points and once with the few, and their difference is added: a control variate.

    Images are periodic with the grid's ``shape``; ``grid_um`` 0.4 holds all that NA .49 transmits (NRMSE .012
    of a finer grid). ``heights_um`` of the layers rise; light passes the first one first.
    """

    optics: Transmitted
    shape: tuple[int, int]
    grid_um: float
    heights_um: tuple[float, ...]

    @cached_property
    def beams(self) -> tuple[Beam, ...]:
        """One for each source point; weights make empty medium 1."""
        return self._beams(self.optics.colour(*self.optics.source()))

    @cached_property
    def many_beams(self) -> tuple[Beam, ...]:
        """Those that correct the coarse part of the image."""
        count = self.optics.coarse_points
        return self._beams(self.optics.colour(*self.optics.fill(count))) if count else ()

    @cached_property
    def coarse_shape(self) -> tuple[int, int]:
        """Rows and columns of the grid that holds coarse frequencies only."""
        least = 2 * _COARSE_NA * self.optics.numerical_aperture / self.optics.wavelength_um * self.grid_um
        sides = (min(fft.next_fast_len(int(np.ceil(least * side))), side) for side in self.shape)
        return next(sides), next(sides)

    def exit_fields(self, path_um: Float32Image) -> ExitFields:
        """Pass light through the layers (layer, y, x), optical path in um; two FFTs per layer and point."""
        layers = {
            colour: [_phasor(np.float32(2 * np.pi / colour) * layer) for layer in path_um]
            for colour in self.colours
        }
        first = {colour: fft.fft2(layers[colour][0]) for colour in self.colours}
        spectra = np.empty((len(self.beams), *self._box), np.complex64)
        fy, fx = self._frequencies(self._box)
        for at, beam in enumerate(self.beams):
            colour = beam.wavelength_um
            field = self._passed(layers[colour], first[colour], beam, self.shape)
            rows, columns = (
                (np.arange(n) - n // 2 - shift) % side
                for n, shift, side in zip(self._box, beam.sample, self.shape, strict=True)
            )
            weighted = self._pupils[colour] * np.float32(np.sqrt(beam.weight))
            spectra[at] = field[np.ix_(rows, columns)] * weighted
            if isinstance(self.optics, DIC):
                sy, sx = self._tilt(beam)
                spectra[at] *= self.optics.shear(fy - sy, fx - sx, colour).astype(np.complex64)
        return ExitFields(spectra, tuple(self._coarse_fields(layers)) if self.many_beams else ())

    def image(self, fields: ExitFields, z_um: float) -> Float32Image:
        """Intensity (y, x) relative to empty medium, with the focus ``z_um`` above height 0."""
        distance = np.float32(2 * np.pi * (z_um - self.heights_um[-1]))
        refocus = {colour: _phasor(distance * self._falls[colour]) for colour in self.colours}
        power = np.zeros((self.shape[0], 2 * self.shape[1]), np.float32)
        for beam, spectrum in zip(self.beams, fields.spectra, strict=True):
            _add_power(power, fft.ifft2(spectrum * refocus[beam.wavelength_um], self.shape))
        image: Float32Image = power[:, ::2] + power[:, 1::2]
        if fields.coarse:
            image += self._coarse_image(fields.coarse, refocus)
        return image

    @cached_property
    def colours(self) -> tuple[float, ...]:
        """Wavelengths of all beams in um."""
        return tuple(sorted({beam.wavelength_um for beam in (*self.beams, *self.many_beams)}))

    @cached_property
    def _box(self) -> tuple[int, int]:
        shortest = min(beam.wavelength_um for beam in self.beams)
        reach = self.optics.numerical_aperture / shortest * (1 + 2 * _SOFT)
        sides = (min(2 * int(np.ceil(reach * side * self.grid_um)) + 1, side) for side in self.shape)
        return next(sides), next(sides)

    def _frequencies(self, steps: tuple[int, int]) -> tuple[Floats, Floats]:
        """Frequencies of a centred box: (y, 1) and (1, x)."""
        y, x = ((np.arange(n) - n // 2) / (s * self.grid_um) for n, s in zip(steps, self.shape, strict=True))
        return y[:, None], x[None, :]

    def _tilt(self, beam: Beam) -> tuple[float, float]:
        """Frequency of a source point, y and x."""
        y, x = (at / (side * self.grid_um) for at, side in zip(beam.sample, self.shape, strict=True))
        return y, x

    def fall(self, square: NDArray[np.floating], wavelength_um: float) -> NDArray[np.float32]:
        """K of the module's docstring, from |g|^2."""
        k0 = self.optics.medium_index / wavelength_um
        fall: NDArray[np.float32] = (np.sqrt(np.maximum(k0**2 - square, 0)) - k0).astype(np.float32)
        return fall

    def pupil(self, square: NDArray[np.floating], wavelength_um: float) -> Complex:
        """P of the module's docstring, from |g|^2."""
        radius = np.sqrt(square) * wavelength_um
        edge = (self.optics.numerical_aperture - radius) / (_SOFT * self.optics.numerical_aperture)
        ring = self.optics.ring(radius, wavelength_um)
        pupil: Complex = (np.clip(edge + 0.5, 0, 1) * ring).astype(np.complex64)
        return pupil

    @cached_property
    def _square(self) -> Floats:
        fy, fx = self._frequencies(self._box)
        return fy**2 + fx**2

    @cached_property
    def _pupils(self) -> dict[float, Complex]:
        return {colour: self.pupil(self._square, colour) for colour in self.colours}

    @cached_property
    def _falls(self) -> dict[float, NDArray[np.float32]]:
        return {colour: self.fall(self._square, colour) for colour in self.colours}

    def _beams(self, source: Source) -> tuple[Beam, ...]:
        length = np.array(self.shape) * self.grid_um
        beams: list[tuple[Beam, float]] = []
        for colour in np.unique(source.wavelengths_um):
            own = source.wavelengths_um == colour
            exact = source.place_na[own, ::-1] / colour * length
            around = np.floor(exact)[:, None] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])  # (s, 4, 2)
            bright = np.abs(self.pupil(np.sum((around / length) ** 2, axis=2), colour)) ** 2
            meant = np.abs(self.pupil(np.sum((exact / length) ** 2, axis=1), colour)) ** 2
            # The nearest sample on the same side of the ring's edge: beside it light is far brighter.
            away = np.sum((around - exact[:, None]) ** 2, axis=2) + 100 * np.abs(bright - meant[:, None])
            nearest = (np.arange(len(exact)), np.argmin(away, axis=1))
            received = bright[nearest]
            if isinstance(self.optics, DIC):
                received = received * np.abs(self.optics.shear(np.zeros(1), np.zeros(1), float(colour))) ** 2
            for (y, x), weight, light in zip(around[nearest], source.weights[own], received, strict=True):
                beams.append((Beam((int(y), int(x)), float(colour), float(weight)), float(weight * light)))
        total = sum(light for _, light in beams)
        return tuple(replace(beam, weight=beam.weight / total) for beam, _ in beams)

    def _passed(self, layers: list[Complex], first: Complex, beam: Beam, shape: tuple[int, int]) -> Complex:
        """Spectrum behind the last layer, by the specimen's frequency; ``first`` is that behind the first."""
        sy, sx = self._tilt(beam)
        fy, fx = (fft.fftfreq(n, side * self.grid_um / n) for n, side in zip(shape, self.shape, strict=True))
        fall = self.fall(((fy + sy) ** 2)[:, None] + ((fx + sx) ** 2)[None], beam.wavelength_um)
        field = first
        for layer, step in zip(layers[1:], np.diff(self.heights_um), strict=True):
            passed = field * _phasor(np.float32(2 * np.pi * step) * fall)
            field = fft.fft2(fft.ifft2(passed, overwrite_x=True) * layer, overwrite_x=True)
        return field

    def _coarse_fields(self, layers: dict[float, list[Complex]]) -> Iterator[CoarseField]:
        shape = self.coarse_shape
        cut = {colour: [_coarsened(layer, shape) for layer in layers[colour]] for colour in self.colours}
        first = {colour: fft.fft2(cut[colour][0]) for colour in self.colours}
        fy, fx = self._frequencies(shape)
        for sign, beams in ((1, self.many_beams), (-1, self.beams)):
            for beam in beams:
                colour = beam.wavelength_um
                field = fft.fftshift(self._passed(cut[colour], first[colour], beam, shape))
                # On an even side the lowest frequency has no opposite one to interfere with.
                field[: 1 - shape[0] % 2], field[:, : 1 - shape[1] % 2] = 0, 0
                if isinstance(self.optics, DIC):
                    field *= self.optics.shear(fy, fx, colour).astype(np.complex64)
                starts = [
                    b // 2 + at - n // 2 for b, at, n in zip(self._box, beam.sample, shape, strict=True)
                ]
                rows, columns = (
                    slice(max(s, 0), min(s + n, b)) for s, n, b in zip(starts, shape, self._box, strict=True)
                )
                inside = field[
                    rows.start - starts[0] : rows.stop - starts[0],
                    columns.start - starts[1] : columns.stop - starts[1],
                ]
                weighted = self._pupils[colour][rows, columns] * np.float32(np.sqrt(beam.weight))
                yield CoarseField(beam, rows, columns, inside * weighted, sign)

    def _coarse_image(self, coarse: tuple[CoarseField, ...], refocus: dict[float, Complex]) -> Float32Image:
        """Image of many points less image of few, both of coarse frequencies only, on the full grid."""
        shape = self.coarse_shape
        power = {sign: np.zeros((shape[0], 2 * shape[1]), np.float32) for sign in (1, -1)}
        for part in coarse:
            there = refocus[part.beam.wavelength_um][part.rows, part.columns]
            _add_power(power[part.sign], fft.ifft2(part.spectrum * there, shape))
        change = power[1] - power[-1]
        few = fft.rfft2(change[:, ::2] + change[:, 1::2])
        all_ = np.zeros((self.shape[0], self.shape[1] // 2 + 1), np.complex64)
        half = (shape[0] + 1) // 2
        all_[:half, : few.shape[1]] = few[:half]
        all_[half - shape[0] :, : few.shape[1]] = few[half:]
        grown: Float32Image = fft.irfft2(all_, self.shape)
        grown *= np.float32(np.prod(self.shape) / np.prod(shape))
        return grown


def _add_power(power: Float32Image, field: Complex) -> None:
    """Add squares of real and imaginary parts, side by side; ``field`` is overwritten."""
    parts = field.view(np.float32)
    np.multiply(parts, parts, out=parts)
    power += parts


def _coarsened(layer: Complex, shape: tuple[int, int]) -> Complex:
    """A layer's lowest frequencies, on a coarser grid."""
    spectrum = fft.fftshift(fft.fft2(layer))
    top, left = (big // 2 - small // 2 for big, small in zip(layer.shape, shape, strict=True))
    few = fft.ifftshift(spectrum[top : top + shape[0], left : left + shape[1]])
    out: Complex = fft.ifft2(few) * np.float32(np.prod(shape) / np.prod(layer.shape))
    return out


def _phasor(angle: NDArray[np.float32]) -> Complex:
    """exp(i angle); cosine and sine apart are several times faster than a complex exponential."""
    out = np.empty(angle.shape, np.complex64)
    np.cos(angle, out=out.real)
    np.sin(angle, out=out.imag)
    return out
