"""How the specimen is lit and what stands in the objective: condenser and back focal plane.

Each modality is one frozen class; apertures are in NA.
"""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from acq_isl.sim.optics import source as light_source
from acq_isl.sim.optics.source import FINE_GRID_UM_NA, LIVE_GRID_UM_NA, Source, Spectrum, WeightedPoints

_RING_PAD_NA = 0.012


@dataclass(frozen=True, slots=True)
class _Light:
    """What all modalities have in common: without more said, nothing stands in the back focal plane."""

    wavelength_um: float = 0.55
    medium_index: float = 1.33
    numerical_aperture: float = 0.49
    _: KW_ONLY
    points: int = 12
    """Source points that make the image."""
    lamp: Spectrum | None = None
    """The spectrum, by default ``wavelength_um`` only."""
    coarse_points: int = 0
    """More points, for the coarse half of the image; see `acq_isl.sim.optics.wave_optics.Imaging`."""
    grid_um_na: float = FINE_GRID_UM_NA
    _APERTURES: ClassVar[tuple[str, ...]] = ("numerical_aperture",)

    def scaled(self, factor: float) -> Self:
        """The same optics with all apertures multiplied by ``factor``, as with another objective."""
        new: dict[str, Any] = {}
        for name in self._APERTURES:
            old = getattr(self, name)
            new[name] = tuple(factor * x for x in old) if isinstance(old, tuple) else factor * old
        return replace(self, **new)

    def fill(self, count: int) -> WeightedPoints:
        """That many points, evenly over the source."""
        raise NotImplementedError

    def source(self) -> WeightedPoints:
        """Source points (s, 2) in NA, x and y, that make the image, and their weights (s,)."""
        return self.fill(self.points)

    def colour(self, place_na: NDArray[np.float64], weights: NDArray[np.float64]) -> Source:
        """Give each point one wavelength of the lamp, in turn."""
        lamp = self.lamp or Spectrum((self.wavelength_um,), (1.0,))
        turn = np.arange(len(weights)) % len(lamp.weights)
        colours = np.array(lamp.wavelengths_um, np.float64)[turn]
        return Source(place_na, weights * np.array(lamp.weights)[turn], colours)

    def ring(
        self, radius_na: NDArray[np.floating], wavelength_um: float | None = None
    ) -> NDArray[np.complex128]:
        """Amplitude transmission of the objective's back focal plane inside its aperture."""
        return np.ones(radius_na.shape, np.complex128)


@dataclass(frozen=True, slots=True)
class _Disc(_Light):
    condenser_na: float = 0.3
    coarse_points: int = field(default=60, kw_only=True)
    grid_um_na: float = field(default=LIVE_GRID_UM_NA, kw_only=True)
    _APERTURES: ClassVar[tuple[str, ...]] = ("numerical_aperture", "condenser_na")

    def fill(self, count: int) -> WeightedPoints:
        return light_source.sample_disc(self.condenser_na, count)


@dataclass(frozen=True, slots=True)
class Brightfield(_Disc):
    """Bright field after Koehler: a disc in the condenser, nothing in the objective.

    Thin transparent matter vanishes in focus and reverses its contrast there (Born & Wolf ch. 10.6).
    Small ``condenser_na`` (radius of the disc) give more contrast out of focus.
    """

    points: int = field(default=14, kw_only=True)

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Brightfield:
        """A random microscope: NA .42-.58, condenser at 30-80 % of it, lamp 0-60 nm wide."""
        aperture, wavelength = rng.uniform(0.42, 0.58), rng.uniform(0.5, 0.6)
        lamp = Spectrum.band(wavelength, rng.uniform(0.0, 0.06))
        return cls(wavelength, 1.33, aperture, aperture * rng.uniform(0.3, 0.8), lamp=lamp)


@dataclass(frozen=True, slots=True)
class DIC(_Disc):
    """Differential interference contrast: the image interferes with itself, shifted by less than it resolves.

    Amplitude u(x + s/2) exp(i b/2) - u(x - s/2) exp(-i b/2), which is a factor 2i sin(pi s.f + b/2) on the
    specimen's frequency f; the condenser's prism makes it the same for all source points (Preza, Snyder,
    Conchello 1999, JOSA A 16:2185). Intensity is relative to the empty medium at this bias; ValueError for
    a bias so small that the empty medium would be dark.
    """

    # length and direction of s
    shear_um: float = 0.35
    direction_rad: float = np.pi / 4
    bias_rad: float = np.pi / 4
    """B at ``wavelength_um``. Contrast goes with cot(b / 2): small ones show more, and need more light."""

    def __post_init__(self) -> None:
        if not 0.1 <= abs(self.bias_rad) <= np.pi:
            raise ValueError(f"the bias of DIC must be .1 to pi either way, not {self.bias_rad:g} rad")

    @classmethod
    def sample(cls, rng: np.random.Generator) -> DIC:
        """A random microscope: NA .42-.58, shear .2-.5 um any way, bias pi/6 to 5 pi/6, lamp 0-60 nm wide."""
        aperture, wavelength = rng.uniform(0.42, 0.58), rng.uniform(0.5, 0.6)
        bias = rng.uniform(np.pi / 6, 5 * np.pi / 6)
        lamp = Spectrum.band(wavelength, rng.uniform(0.0, 0.06))
        condenser, shear = aperture * rng.uniform(0.4, 0.8), rng.uniform(0.2, 0.5)
        return cls(wavelength, 1.33, aperture, condenser, shear, rng.uniform(0, 2 * np.pi), bias, lamp=lamp)

    def scaled(self, factor: float) -> DIC:
        """As for all modalities; the shear is divided by ``factor``."""
        return replace(_Disc.scaled(self, factor), shear_um=self.shear_um / factor)

    def shear(
        self, fy: NDArray[np.floating], fx: NDArray[np.floating], wavelength_um: float
    ) -> NDArray[np.complex128]:
        """Factor on the specimen's frequencies in cycles per um."""
        along = self.shear_um * (np.cos(self.direction_rad) * fx + np.sin(self.direction_rad) * fy)
        bias = self.bias_rad * self.wavelength_um / wavelength_um
        factor: NDArray[np.complex128] = 2j * np.sin(np.pi * along + bias / 2)
        return factor


@dataclass(frozen=True, slots=True)
class PhaseContrast(_Light):
    """Phase contrast: an annulus in the condenser and a ring in the objective that turns the phase.

    Light that was not diffracted passes the ring: attenuated and a quarter of a wave away from the rest,
    so a small phase phi changes the intensity by -2 sqrt(T) phi (Zernike 1942; Born & Wolf ch. 8.6.3).
    Correlation with a full source through focus: 8 points .90-.96, 12 .95-.98, 24 .98-.99; with 60
    ``coarse_points``, 12 reach .99 even when the annulus is decentred.
    """

    annulus_na: tuple[float, float] = (0.2, 0.235)
    """(float, float); inner and outer radius of the annulus, which are those of the ring too."""
    decentre_na: tuple[float, float] = (0.015, 0.065)
    """(float, float); shift of the annulus against the ring in x and y. Light beside the ring gives the
    relief of oblique illumination, which recorded images show."""
    ring_transmission: float = 0.2
    """Intensity T. The ring turns the phase by a quarter of ``wavelength_um``."""
    dense_is_dark: bool = True  # positive phase contrast; False turns the phase the other way
    _APERTURES: ClassVar[tuple[str, ...]] = ("numerical_aperture", "annulus_na", "decentre_na")

    @classmethod
    def sample(cls, rng: np.random.Generator) -> PhaseContrast:
        """A random microscope: NA .42-.58, annulus near .17-.26, decentred by 0-.1, T .08-.35."""
        aperture, middle = rng.uniform(0.42, 0.58), rng.uniform(0.17, 0.26)
        half, shift, angle = rng.uniform(0.01, 0.03), rng.uniform(0, 0.1), rng.uniform(0, 2 * np.pi)
        wavelength = rng.uniform(0.5, 0.6)
        return cls(
            wavelength, 1.33, aperture, (middle - half, middle + half),
            (shift * np.cos(angle), shift * np.sin(angle)), rng.uniform(0.08, 0.35),
            lamp=Spectrum.band(wavelength, rng.uniform(0.0, 0.06)), coarse_points=60,
        )  # fmt: skip

    def fill(self, count: int) -> WeightedPoints:
        place, weights = light_source.sample_annulus(*self.annulus_na, count)
        return place + self.decentre_na, weights

    def source(self) -> WeightedPoints:
        """As for all modalities, but each part of a decentred annulus gets points of its own.

        Light inside of the ring, on it and outside of it makes images of different kinds; each point
        stands for an equal piece of the arc.
        """
        inner, outer = self.annulus_na
        turns, depths = np.meshgrid((np.arange(360) + 0.5) / 360, (np.arange(8) + 0.5) / 8, indexing="ij")
        angle, radius = 2 * np.pi * turns.ravel(), inner + (outer - inner) * depths.ravel()
        place = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1) + self.decentre_na
        area = radius / radius.sum()
        away = np.hypot(*place.T)
        part = np.digitize(away, (inner - _RING_PAD_NA, outer + _RING_PAD_NA))
        light = np.bincount(part, area * np.abs(self.ring(away)) ** 2, 3)
        chosen: list[tuple[int, float]] = []
        for which, count in enumerate(_share_points(light / light.sum(), self.points)):
            members = np.flatnonzero(part == which)
            for group in np.array_split(members[_order_along_arc(angle[members])], count) if count else ():
                middle = place[group].mean(axis=0)
                best = group[np.argmin(np.sum((place[group] - middle) ** 2, axis=1))]
                chosen.append((int(best), float(area[group].sum())))
        samples, weights = zip(*chosen, strict=True)
        return place[list(samples)], np.array(weights)

    def ring(
        self, radius_na: NDArray[np.floating], wavelength_um: float | None = None
    ) -> NDArray[np.complex128]:
        inner, outer = self.annulus_na
        inside = (radius_na > inner - _RING_PAD_NA) & (radius_na < outer + _RING_PAD_NA)
        waves = self.wavelength_um / (wavelength_um or self.wavelength_um)
        turn = (-1j if self.dense_is_dark else 1j) ** waves
        return np.where(inside, turn * np.sqrt(self.ring_transmission), 1.0)


@dataclass(frozen=True, slots=True)
class Oblique(_Light):
    """Oblique bright field: light from one side only, no ring. Gives relief, as a decentred annulus does."""

    direction_rad: float = np.pi / 2  # where the light comes from
    reach: tuple[float, float] = (0.6, 0.95)
    """(float, float); inner and outer radius of the arc as fractions of the aperture."""

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Oblique:
        """A random microscope: NA .42-.58, light from 40-95 % of it, any direction, lamp 0-60 nm wide."""
        wavelength, aperture = rng.uniform(0.5, 0.6), rng.uniform(0.42, 0.58)
        angle, reach = rng.uniform(0, 2 * np.pi), (rng.uniform(0.4, 0.7), rng.uniform(0.8, 0.95))
        lamp = Spectrum.band(wavelength, rng.uniform(0.0, 0.06))
        return cls(wavelength, 1.33, aperture, angle, reach, lamp=lamp, coarse_points=60)

    def fill(self, count: int) -> WeightedPoints:
        inner, outer = (part * self.numerical_aperture for part in self.reach)
        return light_source.sample_arc(inner, outer, self.direction_rad, count)


Transmitted = PhaseContrast | Oblique | Brightfield | DIC


LIVE_PHASE_CONTRAST = PhaseContrast(coarse_points=60, grid_um_na=LIVE_GRID_UM_NA)
"""What a simulated microscope looks through unless told otherwise: r .99 with a full source."""


def describe_optics(optics: Transmitted) -> str:
    """All parameters of an optics as JSON, its kind among them."""
    return json.dumps({"kind": type(optics).__name__, **asdict(optics)})


def _share_points(light: NDArray[np.float64], points: int) -> list[int]:
    """How many points each part of the source gets: in proportion to its light, at least two if any."""
    counts = [0 if part < 0.002 else max(2, round(float(part) * points)) for part in light]
    while sum(counts) != points:
        step = 1 if sum(counts) < points else -1
        room = [
            (part * points - count) * step if count > (0 if step > 0 else 2) else -np.inf
            for part, count in zip(light, counts, strict=True)
        ]
        counts[int(np.argmax(room))] += step
    return counts


def _order_along_arc(angle: NDArray[np.float64]) -> NDArray[np.intp]:
    """Order of angles along an arc, which begins behind its widest gap."""
    if not angle.size:
        return np.zeros(0, np.intp)
    order = np.argsort(angle)
    gaps = np.diff(angle[order], append=angle[order[0]] + 2 * np.pi)
    return np.roll(order, -int(np.argmax(gaps)) - 1)
