"""Bright field and differential interference contrast: a disc for a source, an open objective."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from acq_isl.sim.optics.source import LIVE_GRID_UM_NA, Lamp, Points, Source, dealt, disc, lamp_of


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
