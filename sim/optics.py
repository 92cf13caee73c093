"""Transmitted light by wave optics: partially coherent images of a few layers of optical path.

Conventions: vacuum wavelength lambda, medium index n, spatial frequencies in cycles per um. A layer
transmits exp(i 2 pi / lambda * path). A source point at numerical aperture NA_s has the frequency
f_s = NA_s / lambda. Defocus by z multiplies the field with exp(i 2 pi z K(g)),
K(g) = sqrt((n/lambda)^2 - |g|^2) - n/lambda.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from acq_isl.stack import Float32Image

Complex = NDArray[np.complex64]
Points = NDArray[np.float64]

_SOFT = 0.03
_RING_PAD_NA = 0.012


@dataclass(frozen=True, slots=True)
class PhaseContrast:
    """Phase contrast: an annulus in the condenser and a ring in the objective that turns the phase.

    Light that was not diffracted passes the ring: attenuated and a quarter of a wave away from the rest,
    so a small phase phi changes the intensity by -2 sqrt(T) phi (Zernike 1942; Born & Wolf ch. 8.6.3).

    Parameters
    ----------
    wavelength_um, medium_index, numerical_aperture : float
    annulus_na : (float, float)
        Inner and outer radius of the annulus, which are those of the ring too.
    decentre_na : (float, float)
        Shift of the annulus against the ring in x and y. Light beside the ring gives the relief of
        oblique illumination, which recorded images show.
    ring_transmission : float
        Intensity T.
    dense_is_dark : bool
        Positive phase contrast; False turns the phase the other way.
    points : int
        Source points. Correlation with a full source through focus: 8 .90-.96, 12 .95-.98, 24 .98-.99.
    """

    wavelength_um: float = 0.55
    medium_index: float = 1.33
    numerical_aperture: float = 0.49
    annulus_na: tuple[float, float] = (0.2, 0.235)
    decentre_na: tuple[float, float] = (0.015, 0.065)
    ring_transmission: float = 0.2
    dense_is_dark: bool = True
    points: int = 12

    def scaled(self, factor: float) -> PhaseContrast:
        """The same optics with all apertures multiplied by ``factor``, as with another objective."""
        inner, outer = self.annulus_na
        return replace(
            self,
            numerical_aperture=self.numerical_aperture * factor,
            annulus_na=(inner * factor, outer * factor),
            decentre_na=(self.decentre_na[0] * factor, self.decentre_na[1] * factor),
        )

    def source(self) -> tuple[Points, NDArray[np.float64]]:
        """Source points (s, 2) in NA, x and y, and their weights (s,).

        Light inside of the ring, on it and outside of it makes images of different kinds, so each of the
        three parts of a decentred annulus gets its own points, each for an equal piece of the arc.
        """
        inner, outer = self.annulus_na
        turns, depths = np.meshgrid((np.arange(360) + 0.5) / 360, (np.arange(8) + 0.5) / 8, indexing="ij")
        angle, radius = 2 * np.pi * turns.ravel(), inner + (outer - inner) * depths.ravel()
        place = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1) + self.decentre_na
        area = radius / radius.sum()
        away = np.hypot(*place.T)
        part = np.digitize(away, (inner - _RING_PAD_NA, outer + _RING_PAD_NA))
        light = np.bincount(part, area * np.abs(self.ring(away)) ** 2, 3)
        kept: list[tuple[int, float]] = []
        for which, count in enumerate(_share(light / light.sum(), self.points)):
            members = np.flatnonzero(part == which)
            for group in np.array_split(members[_along_arc(angle[members])], count) if count else ():
                middle = place[group].mean(axis=0)
                best = group[np.argmin(np.sum((place[group] - middle) ** 2, axis=1))]
                kept.append((int(best), float(area[group].sum())))
        chosen, weights = zip(*kept, strict=True)
        return place[list(chosen)], np.array(weights)

    def ring(self, radius_na: NDArray[np.floating]) -> NDArray[np.complex128]:
        """Amplitude transmission of the objective's back focal plane inside its aperture."""
        inner, outer = self.annulus_na
        inside = (radius_na > inner - _RING_PAD_NA) & (radius_na < outer + _RING_PAD_NA)
        turned = (-1j if self.dense_is_dark else 1j) * np.sqrt(self.ring_transmission)
        return np.where(inside, turned, 1.0)


@dataclass(frozen=True, slots=True)
class Oblique:
    """Oblique bright field: light from one side only, no ring. Gives relief, as a decentred annulus does.

    Parameters
    ----------
    wavelength_um, medium_index, numerical_aperture : float
    direction_rad : float
        Where the light comes from.
    reach : (float, float)
        Inner and outer radius of the arc as fractions of the aperture.
    points : int
    """

    wavelength_um: float = 0.55
    medium_index: float = 1.33
    numerical_aperture: float = 0.49
    direction_rad: float = np.pi / 2
    reach: tuple[float, float] = (0.6, 0.95)
    points: int = 12

    def scaled(self, factor: float) -> Oblique:
        """The same optics with all apertures multiplied by ``factor``, as with another objective."""
        return replace(self, numerical_aperture=self.numerical_aperture * factor)

    def source(self) -> tuple[Points, NDArray[np.float64]]:
        """Source points (s, 2) in NA and weights (s,) that fall as the cosine towards the arc's ends."""
        turn = np.pi * ((np.arange(self.points) + 0.5) / self.points - 0.5)
        inner, outer = (part * self.numerical_aperture for part in self.reach)
        radius = inner + (outer - inner) * np.where(np.arange(self.points) % 2, 0.75, 0.25)
        angle = self.direction_rad + turn
        weights = np.cos(turn)
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), weights / weights.sum()

    def ring(self, radius_na: NDArray[np.floating]) -> NDArray[np.complex128]:
        """Nothing in the back focal plane."""
        return np.ones(radius_na.shape, np.complex128)


Transmitted = PhaseContrast | Oblique


def _share(light: NDArray[np.float64], points: int) -> list[int]:
    """How many points each part of the source gets: in proportion to its light, at least two if any."""
    counts = [0 if part < 0.002 else max(2, round(float(part) * points)) for part in light]
    while sum(counts) != points:
        step = 1 if sum(counts) < points else -1
        room = [
            part * points - count if count else -np.inf for part, count in zip(light, counts, strict=True)
        ]
        able = [r * step if step > 0 or c > 2 else -np.inf for r, c in zip(room, counts, strict=True)]
        counts[int(np.argmax(able))] += step
    return counts


def _along_arc(angle: NDArray[np.float64]) -> NDArray[np.intp]:
    """Order of angles along an arc, which begins behind its widest gap."""
    if not angle.size:
        return np.zeros(0, np.intp)
    order = np.argsort(angle)
    gaps = np.diff(angle[order], append=angle[order[0]] + 2 * np.pi)
    return np.roll(order, -int(np.argmax(gaps)) - 1)


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
