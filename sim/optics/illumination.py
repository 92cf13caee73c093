"""How the specimen is lit and what stands in the objective: condenser and back focal plane.

Each modality is one frozen class. ``points`` source points make the image; ``coarse_points`` more of them
correct the coarse half of it (see `acq_isl.sim.optics.wave_optics.Imaging`), which is where few points go
wrong.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from acq_isl.sim.optics.source import (
    FINE_GRID_UM_NA,
    LIVE_GRID_UM_NA,
    Lamp,
    Points,
    Source,
    annulus,
    dealt,
    disc,
    lamp_of,
)


class _FromDisc:
    """What light from a disc in the condenser, with nothing in the back focal plane, has in common."""

    __slots__ = ()
    wavelength_um: float
    condenser_na: float
    points: int
    lamp: Lamp | None

    def spread(self, count: int) -> Source:
        """That many points, evenly over the disc."""
        return dealt(*disc(self.condenser_na, count), lamp_of(self.lamp, self.wavelength_um))

    def source(self) -> tuple[Points, NDArray[np.float64]]:
        """Source points (s, 2) in NA and weights (s,)."""
        return disc(self.condenser_na, self.points)

    def ring(
        self, radius_na: NDArray[np.floating], wavelength_um: float | None = None
    ) -> NDArray[np.complex128]:
        """Nothing in the back focal plane."""
        return np.ones(radius_na.shape, np.complex128)


@dataclass(frozen=True, slots=True)
class Brightfield(_FromDisc):
    """Bright field after Koehler: a disc in the condenser, nothing in the objective.

    Thin transparent matter vanishes in focus and reverses its contrast there (Born & Wolf ch. 10.6).

    Parameters
    ----------
    wavelength_um, medium_index, numerical_aperture : float
    condenser_na : float
        Radius of the disc; small ones give more contrast out of focus.
    points : int
    lamp : Lamp, optional
        Default: ``wavelength_um`` only.
    coarse_points : int
    grid_um_na : float
        See `acq_isl.sim.optics.source.FINE_GRID_UM_NA`.
    """

    wavelength_um: float = 0.55
    medium_index: float = 1.33
    numerical_aperture: float = 0.49
    condenser_na: float = 0.3
    points: int = 14
    lamp: Lamp | None = None
    coarse_points: int = 60
    grid_um_na: float = LIVE_GRID_UM_NA

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Brightfield:
        """A random microscope: NA .42-.58, condenser at 30-80 % of it, lamp 0-60 nm wide."""
        aperture, wavelength = rng.uniform(0.42, 0.58), rng.uniform(0.5, 0.6)
        lamp = Lamp.band(wavelength, rng.uniform(0.0, 0.06))
        return cls(wavelength, 1.33, aperture, aperture * rng.uniform(0.3, 0.8), lamp=lamp, coarse_points=60)

    def scaled(self, factor: float) -> Brightfield:
        """The same optics with all apertures multiplied by ``factor``, as with another objective."""
        return replace(
            self,
            numerical_aperture=self.numerical_aperture * factor,
            condenser_na=self.condenser_na * factor,
        )


@dataclass(frozen=True, slots=True)
class DIC(_FromDisc):
    """Differential interference contrast: the image interferes with itself, shifted by less than it resolves.

    Amplitude u(x + s/2) exp(i b/2) - u(x - s/2) exp(-i b/2), which is a factor 2i sin(pi s.f + b/2) on the
    specimen's frequency f; the condenser's prism makes it the same for all source points (Preza, Snyder,
    Conchello 1999, JOSA A 16:2185). Intensity is relative to the empty medium at this bias.

    Parameters
    ----------
    wavelength_um, medium_index, numerical_aperture : float
    condenser_na : float
    shear_um : float
        Length of s.
    direction_rad : float
        Direction of s.
    bias_rad : float
        b at ``wavelength_um``. Contrast goes with cot(b / 2): small ones show more, and need more light.
    points : int
    lamp : Lamp, optional
        Default: ``wavelength_um`` only.
    coarse_points : int
    grid_um_na : float
        See `acq_isl.sim.optics.source.FINE_GRID_UM_NA`.

    Raises
    ------
    ValueError
        The bias is so small that the empty medium would be dark.
    """

    wavelength_um: float = 0.55
    medium_index: float = 1.33
    numerical_aperture: float = 0.49
    condenser_na: float = 0.3
    shear_um: float = 0.35
    direction_rad: float = np.pi / 4
    bias_rad: float = np.pi / 4
    points: int = 12
    lamp: Lamp | None = None
    coarse_points: int = 60
    grid_um_na: float = LIVE_GRID_UM_NA

    def __post_init__(self) -> None:
        if not 0.1 <= abs(self.bias_rad) <= np.pi:
            raise ValueError(f"the bias of DIC must be .1 to pi either way, not {self.bias_rad:g} rad")

    @classmethod
    def sample(cls, rng: np.random.Generator) -> DIC:
        """A random microscope: NA .42-.58, shear .2-.5 um any way, bias pi/6 to 5 pi/6, lamp 0-60 nm wide."""
        aperture, wavelength = rng.uniform(0.42, 0.58), rng.uniform(0.5, 0.6)
        bias = rng.uniform(np.pi / 6, 5 * np.pi / 6)
        lamp = Lamp.band(wavelength, rng.uniform(0.0, 0.06))
        return cls(
            wavelength, 1.33, aperture, aperture * rng.uniform(0.4, 0.8), rng.uniform(0.2, 0.5),
            rng.uniform(0, 2 * np.pi), bias, lamp=lamp, coarse_points=60,
        )  # fmt: skip

    def scaled(self, factor: float) -> DIC:
        """The same optics with all apertures multiplied by ``factor``, and the shear divided by it."""
        return replace(
            self,
            numerical_aperture=self.numerical_aperture * factor,
            condenser_na=self.condenser_na * factor,
            shear_um=self.shear_um / factor,
        )

    def shear(
        self, fy: NDArray[np.floating], fx: NDArray[np.floating], wavelength_um: float
    ) -> NDArray[np.complex128]:
        """Factor on the specimen's frequencies in cycles per um."""
        along = self.shear_um * (np.cos(self.direction_rad) * fx + np.sin(self.direction_rad) * fy)
        bias = self.bias_rad * self.wavelength_um / wavelength_um
        factor: NDArray[np.complex128] = 2j * np.sin(np.pi * along + bias / 2)
        return factor


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
    lamp : Lamp, optional
        Default: ``wavelength_um`` only. The ring turns the phase by a quarter of ``wavelength_um``.
    coarse_points : int
        With 60, 12 points reach .99 even when the annulus is decentred.
    grid_um_na : float
        See `acq_isl.sim.optics.source.FINE_GRID_UM_NA`.
    """

    wavelength_um: float = 0.55
    medium_index: float = 1.33
    numerical_aperture: float = 0.49
    annulus_na: tuple[float, float] = (0.2, 0.235)
    decentre_na: tuple[float, float] = (0.015, 0.065)
    ring_transmission: float = 0.2
    dense_is_dark: bool = True
    points: int = 12
    lamp: Lamp | None = None
    coarse_points: int = 0
    grid_um_na: float = FINE_GRID_UM_NA

    @classmethod
    def sample(cls, rng: np.random.Generator) -> PhaseContrast:
        """A random microscope: NA .42-.58, annulus near .17-.26, decentred by 0-.1, T .08-.35."""
        aperture, middle = rng.uniform(0.42, 0.58), rng.uniform(0.17, 0.26)
        half, shift, angle = rng.uniform(0.01, 0.03), rng.uniform(0, 0.1), rng.uniform(0, 2 * np.pi)
        wavelength = rng.uniform(0.5, 0.6)
        return cls(
            wavelength, 1.33, aperture, (middle - half, middle + half),
            (shift * np.cos(angle), shift * np.sin(angle)), rng.uniform(0.08, 0.35),
            lamp=Lamp.band(wavelength, rng.uniform(0.0, 0.06)), coarse_points=60,
        )  # fmt: skip

    def scaled(self, factor: float) -> PhaseContrast:
        """The same optics with all apertures multiplied by ``factor``, as with another objective."""
        inner, outer = self.annulus_na
        return replace(
            self,
            numerical_aperture=self.numerical_aperture * factor,
            annulus_na=(inner * factor, outer * factor),
            decentre_na=(self.decentre_na[0] * factor, self.decentre_na[1] * factor),
        )

    def spread(self, count: int) -> Source:
        """That many points, evenly over the annulus."""
        place, weights = annulus(*self.annulus_na, count)
        return dealt(place + self.decentre_na, weights, lamp_of(self.lamp, self.wavelength_um))

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

    def ring(
        self, radius_na: NDArray[np.floating], wavelength_um: float | None = None
    ) -> NDArray[np.complex128]:
        """Amplitude transmission of the objective's back focal plane inside its aperture."""
        inner, outer = self.annulus_na
        inside = (radius_na > inner - _RING_PAD_NA) & (radius_na < outer + _RING_PAD_NA)
        turn = (-1j if self.dense_is_dark else 1j) ** (
            self.wavelength_um / (wavelength_um or self.wavelength_um)
        )
        return np.where(inside, turn * np.sqrt(self.ring_transmission), 1.0)


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
    lamp : Lamp, optional
        Default: ``wavelength_um`` only.
    coarse_points : int
    grid_um_na : float
        See `acq_isl.sim.optics.source.FINE_GRID_UM_NA`.
    """

    wavelength_um: float = 0.55
    medium_index: float = 1.33
    numerical_aperture: float = 0.49
    direction_rad: float = np.pi / 2
    reach: tuple[float, float] = (0.6, 0.95)
    points: int = 12
    lamp: Lamp | None = None
    coarse_points: int = 0
    grid_um_na: float = FINE_GRID_UM_NA

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Oblique:
        """A random microscope: NA .42-.58, light from 40-95 % of it, any direction, lamp 0-60 nm wide."""
        wavelength, aperture, angle = (
            rng.uniform(0.5, 0.6),
            rng.uniform(0.42, 0.58),
            rng.uniform(0, 2 * np.pi),
        )
        reach = (rng.uniform(0.4, 0.7), rng.uniform(0.8, 0.95))
        lamp = Lamp.band(wavelength, rng.uniform(0.0, 0.06))
        return cls(wavelength, 1.33, aperture, angle, reach, lamp=lamp, coarse_points=60)

    def scaled(self, factor: float) -> Oblique:
        """The same optics with all apertures multiplied by ``factor``, as with another objective."""
        return replace(self, numerical_aperture=self.numerical_aperture * factor)

    def spread(self, count: int) -> Source:
        """That many points along the arc."""
        return dealt(*replace(self, points=count).source(), lamp_of(self.lamp, self.wavelength_um))

    def source(self) -> tuple[Points, NDArray[np.float64]]:
        """Source points (s, 2) in NA and weights (s,) that fall as the cosine towards the arc's ends."""
        turn = np.pi * ((np.arange(self.points) + 0.5) / self.points - 0.5)
        inner, outer = (part * self.numerical_aperture for part in self.reach)
        radius = inner + (outer - inner) * np.where(np.arange(self.points) % 2, 0.75, 0.25)
        angle = self.direction_rad + turn
        weights = np.cos(turn)
        return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), weights / weights.sum()

    def ring(
        self, radius_na: NDArray[np.floating], wavelength_um: float | None = None
    ) -> NDArray[np.complex128]:
        """Nothing in the back focal plane."""
        return np.ones(radius_na.shape, np.complex128)


Transmitted = PhaseContrast | Oblique | Brightfield | DIC


LIVE_PHASE_CONTRAST = PhaseContrast(points=12, coarse_points=60, grid_um_na=LIVE_GRID_UM_NA)
"""What a simulated microscope looks through unless told otherwise: r .99 with a full source."""


def describe_optics(optics: Transmitted) -> str:
    """All parameters of an optics as JSON, its kind among them."""
    return json.dumps({"kind": type(optics).__name__, **asdict(optics)})


def points_of(optics: Transmitted) -> Source:
    """The source points that make the image."""
    return dealt(*optics.source(), lamp_of(optics.lamp, optics.wavelength_um))


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
