"""Stained structures through a wide-field fluorescence microscope. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, special

from acq_isl.stack import Float32Image

_RADII = 0.04  # um between samples of the point-spread function
_STEPS = 160
_SOFT_PX = 2.0


@dataclass(frozen=True, slots=True)
class Stain:
    """A fluorophore and its label; after ``lifetime_ms`` of nominal light 1/e of it still shines."""

    channel: str
    label: str
    emission_um: float
    lifetime_ms: float


STAINS = (
    Stain("DAPI", "nuclei", 0.461, 120_000.0),
    Stain("MAP2", "dendrites", 0.519, 60_000.0),
    Stain("NFH", "axons", 0.617, 60_000.0),
    Stain("PI", "dead", 0.636, 90_000.0),
)


@dataclass(frozen=True, slots=True)
class Widefield:
    """A wide-field fluorescence microscope: all light of all heights reaches the camera, in focus or not."""

    numerical_aperture: float = 0.49
    medium_index: float = 1.33

    def transfer(self, emission_um: float, z_um: float, frequency: NDArray[np.floating]) -> Float32Image:
        """Optical transfer function at a defocus; ``frequency`` in cycles per um, 1 at 0.

        The point-spread function |int P(g) exp(i 2 pi z K(g)) J0(2 pi r g) g dg|^2 (scalar Debye
        integral; Gu, Advanced Optical Imaging Theory, ch. 3), transformed back; K as in
        `acq_isl.sim.optics.wave_optics`.
        """
        edge = self.numerical_aperture / emission_um
        k0 = self.medium_index / emission_um
        g = (np.arange(_STEPS) + 0.5) / _STEPS * edge
        spread = self.numerical_aperture / np.sqrt(self.medium_index**2 - self.numerical_aperture**2)
        r = (np.arange(int((4.0 + 1.5 * abs(z_um) * spread) / _RADII)) + 0.5) * _RADII
        defocus = np.exp(2j * np.pi * z_um * (np.sqrt(k0**2 - g**2) - k0))
        field = special.j0(2 * np.pi * np.outer(r, g)) @ (defocus * g)
        ring = np.abs(field) ** 2 * r
        f = np.linspace(0, 2 * edge, _STEPS + 1)
        transfer = special.j0(2 * np.pi * np.outer(f, r)) @ ring / ring.sum()
        transfer[-1] = 0.0
        sampled: Float32Image = np.interp(frequency, f, transfer).astype(np.float32)
        return sampled


@dataclass(frozen=True, slots=True, eq=False)
class StainedField:
    """Spectra (layer, fy, fx) of a fluorophore's density around a view, frequencies in cycles per um."""

    spectra: NDArray[np.complex64]
    shape: tuple[int, int]
    padded: tuple[int, int]
    frequency: Float32Image
    heights_um: tuple[float, ...]

    @classmethod
    def of(
        cls, label: Float32Image, path_um: Float32Image, step_um: float, heights_um: tuple[float, ...]
    ) -> StainedField:
        """Give each layer the part of a label (y, x), 0..1, that its share of the matter has."""
        sigma = (0, _SOFT_PX, _SOFT_PX)
        matter = ndimage.gaussian_filter(np.maximum(path_um, 0), sigma) + np.float32(1e-6)
        density = label * matter / matter.sum(axis=0)
        sides = [fft.next_fast_len(side, True) for side in label.shape]
        fy, fx = fft.fftfreq(sides[0], step_um)[:, None], fft.rfftfreq(sides[1], step_um)[None]
        frequency = np.hypot(fy, fx).astype(np.float32)
        size = label.shape[0], label.shape[1]
        return cls(fft.rfft2(density, sides), size, (sides[0], sides[1]), frequency, heights_um)

    def image(self, microscope: Widefield, emission_um: float, z_um: float) -> Float32Image:
        """Light on the grid with the focus ``z_um`` above the glass; 1 is a label of 1 in focus."""
        total = np.zeros(self.frequency.shape, np.complex64)
        for spectrum, height in zip(self.spectra, self.heights_um, strict=True):
            total += spectrum * microscope.transfer(emission_um, z_um - height, self.frequency)
        image: Float32Image = fft.irfft2(total, self.padded)[: self.shape[0], : self.shape[1]]
        return np.maximum(image, 0)
