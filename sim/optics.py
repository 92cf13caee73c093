"""Transmitted light by wave optics: partially coherent images of a few layers of optical path.

Conventions: vacuum wavelength lambda, medium index n, spatial frequencies in cycles per um. A layer
transmits exp(i 2 pi / lambda * path). A source point at numerical aperture NA_s has the frequency
f_s = NA_s / lambda. Defocus by z multiplies the field with exp(i 2 pi z K(g)),
K(g) = sqrt((n/lambda)^2 - |g|^2) - n/lambda.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from acq_isl.sim.illumination import Transmitted
from acq_isl.stack import Float32Image

Complex = NDArray[np.complex64]

_SOFT = 0.03


@dataclass(frozen=True, slots=True, eq=False)
class ExitFields:
    """Fields in the objective's back focal plane, one per source point, from which any focus follows.

    Parameters
    ----------
    spectra : (s, my, mx) complex64
        Shifted so that the pupil's middle is the array's middle; source weights included.
    """

    spectra: Complex


@dataclass(frozen=True, eq=False)
class Imaging:
    """Optics on a grid: layers become back-focal-plane fields, and these become images at any focus.

    Abbe's sum over source points after a multi-slice passage through the layers: exact for strong
    phases, where the linear weak-object model has the wrong sign of contrast. The pupil is shifted by
    whole frequency samples, so all source points share one defocus factor per focus.

    Parameters
    ----------
    optics : PhaseContrast or Oblique
    shape : (int, int)
        Rows and columns of the grid; images are periodic with it.
    grid_um : float
        Sampling of the grid; 0.4 um holds all that NA .49 transmits (NRMSE .012 of a finer grid).
    heights_um : tuple of float
        Heights of the layers, rising; light passes the first one first.
    """

    optics: Transmitted
    shape: tuple[int, int]
    grid_um: float
    heights_um: tuple[float, ...]

    @cached_property
    def _box(self) -> tuple[int, int]:
        reach = self.optics.numerical_aperture / self.optics.wavelength_um * (1 + 2 * _SOFT)
        sides = (min(2 * int(np.ceil(reach * side * self.grid_um)) + 1, side) for side in self.shape)
        return next(sides), next(sides)

    def _frequencies(self, steps: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Frequencies of a centred box: (y, 1) and (1, x)."""
        y, x = ((np.arange(n) - n // 2) / (s * self.grid_um) for n, s in zip(steps, self.shape, strict=True))
        return y[:, None], x[None, :]

    def _fall(self, square: NDArray[np.floating]) -> NDArray[np.float32]:
        """K of the module's docstring, from |g|^2."""
        k0 = self.optics.medium_index / self.optics.wavelength_um
        fall: NDArray[np.float32] = (np.sqrt(np.maximum(k0**2 - square, 0)) - k0).astype(np.float32)
        return fall

    def _pupil(self, square: NDArray[np.floating]) -> Complex:
        radius = np.sqrt(square) * self.optics.wavelength_um
        edge = (self.optics.numerical_aperture - radius) / (_SOFT * self.optics.numerical_aperture)
        pupil: Complex = (np.clip(edge + 0.5, 0, 1) * self.optics.ring(radius)).astype(np.complex64)
        return pupil

    @cached_property
    def _box_pupil(self) -> Complex:
        fy, fx = self._frequencies(self._box)
        return self._pupil(fy**2 + fx**2)

    @cached_property
    def _box_fall(self) -> NDArray[np.float32]:
        fy, fx = self._frequencies(self._box)
        return self._fall(fy**2 + fx**2)

    @cached_property
    def _source(self) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Source frequencies in whole samples (s, 2) as y, x, and weights that make empty medium 1."""
        place, weights = self.optics.source()
        length = np.array(self.shape) * self.grid_um
        exact = place[:, ::-1] / self.optics.wavelength_um * length
        around = np.floor(exact)[:, None] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])  # (s, 4, 2)
        bright = np.abs(self._pupil(np.sum((around / length) ** 2, axis=2))) ** 2
        meant = np.abs(self._pupil(np.sum((exact / length) ** 2, axis=1))) ** 2
        # The nearest sample on the same side of the ring's edge: beside it light is several times brighter.
        away = np.sum((around - exact[:, None]) ** 2, axis=2) + 100 * np.abs(bright - meant[:, None])
        nearest = (np.arange(len(exact)), np.argmin(away, axis=1))
        return around[nearest].astype(np.intp), weights / float(np.sum(weights * bright[nearest]))

    def exit_fields(self, path_um: Float32Image) -> ExitFields:
        """Pass light through the layers (layer, y, x), optical path in um; two FFTs per layer and point."""
        turn = np.float32(2 * np.pi / self.optics.wavelength_um)
        layers = [_phasor(turn * layer) for layer in path_um]
        first = fft.fft2(layers[0])
        steps = np.diff(self.heights_um)
        samples, weights = self._source
        spectra = np.empty((len(samples), *self._box), np.complex64)
        fy, fx = (fft.fftfreq(n, self.grid_um) for n in self.shape)
        for at, (sample, weight) in enumerate(zip(samples, weights, strict=True)):
            sy, sx = sample / (np.array(self.shape) * self.grid_um)
            fall = self._fall(((fy + sy) ** 2)[:, None] + ((fx + sx) ** 2)[None])
            field = first
            for layer, step in zip(layers[1:], steps, strict=True):
                passed = field * _phasor(np.float32(2 * np.pi * step) * fall)
                field = fft.fft2(fft.ifft2(passed, overwrite_x=True) * layer, overwrite_x=True)
            rows, columns = (
                (np.arange(n) - n // 2 - shift) % side
                for n, shift, side in zip(self._box, sample, self.shape, strict=True)
            )
            spectra[at] = field[np.ix_(rows, columns)] * self._box_pupil * np.float32(np.sqrt(weight))
        return ExitFields(spectra)

    def image(self, fields: ExitFields, z_um: float) -> Float32Image:
        """Intensity (y, x) relative to empty medium, with the focus ``z_um`` above height 0."""
        distance = np.float32(2 * np.pi * (z_um - self.heights_um[-1]))
        refocus = _phasor(distance * self._box_fall)
        image = np.zeros(self.shape, np.float32)
        for spectrum in fields.spectra:
            field = fft.ifft2(spectrum * refocus, self.shape)
            image += field.real**2
            image += field.imag**2
        return image


def _phasor(angle: NDArray[np.float32]) -> Complex:
    """exp(i angle); cosine and sine apart are several times faster than a complex exponential."""
    out = np.empty(angle.shape, np.complex64)
    np.cos(angle, out=out.real)
    np.sin(angle, out=out.imag)
    return out


def weak_phase_transfer(imaging: Imaging, z_um: float) -> Complex:
    """Transfer H of the linear weak-object model for a pure phase: I = 1 + F^-1[H F[phi]], (y, x) complex64.

    H(f) = i sum_s w_s [c* P(f + f_s) - c P*(f_s - f)] / sum_s w_s |c|^2 with c = P(f_s) and the pupil P
    including defocus (Streibl 1985; the form used by waveorder). Right below about half a radian only;
    here it is the analytic limit that the wave model is tested against.
    """
    fy, fx = (fft.fftfreq(n, imaging.grid_um) for n in imaging.shape)
    samples, weights = imaging._source

    def pupil(gy: NDArray[np.float64], gx: NDArray[np.float64]) -> NDArray[np.complex128]:
        square = gy**2 + gx**2
        defocused: NDArray[np.complex128] = imaging._pupil(square) * np.exp(
            2j * np.pi * z_um * imaging._fall(square)
        )
        return defocused

    transfer = np.zeros(imaging.shape, np.complex128)
    for sample, weight in zip(samples, weights, strict=True):
        sy, sx = sample / (np.array(imaging.shape) * imaging.grid_um)
        c = pupil(np.array(sy), np.array(sx))
        ahead = pupil(sy + fy[:, None], sx + fx[None])
        behind = pupil(sy - fy[:, None], sx - fx[None])
        transfer += weight * 1j * (np.conj(c) * ahead - c * np.conj(behind))
    return transfer.astype(np.complex64)
