"""Training pairs of an epithelial-like culture: random cells, random light, any planes, known truth."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from scipy import ndimage

from acq_isl.processing.normalize import contrast_sd
from acq_isl.sim.optics.illumination import Brightfield, Oblique, PhaseContrast, Transmitted
from acq_isl.sim.specimen.epithelial import EpithelialSpecimen
from acq_isl.sim.specimen.epithelium import Monolayer
from acq_isl.sim.specimen.sensor import Sensor, on_sensor
from acq_isl.sim.view import View
from acq_isl.stack import Float32Image, Uint16Image

LABELS = ("nuclei", "cells", "dead")
_HIGH_PASS_UM = 6.0
_LEVEL = 30000.0


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class EpitheliumConfig:
    """Ranges of the simulated fields; pairs are (low, high) of a uniform distribution."""

    seed: int = 0
    fields: int = 280
    """To train on."""
    held_out: int = 24
    """Of other specimens, for validation and calibration."""
    side_px: int = 256
    planes: tuple[int, int] = (1, 7)
    """Least and most; half of the fields have the most."""
    pixel_um: tuple[float, float] = (0.4, 0.5)
    z_step_um: tuple[float, float] = (0.3, 5.0)
    """Mean of a field, uniform in its logarithm; single distances are up to 1.7 times as large."""
    focus_um: tuple[float, float] = (-7.0, 9.0)
    """Of the middle of a stack."""
    aperture: tuple[float, float] = (0.28, 0.65)
    condenser: tuple[float, float] = (0.1, 0.8)
    """Of bright field, relative to the aperture, uniform in its logarithm."""
    phase_contrast: float = 0.25
    """Share of fields in phase contrast; most others are in bright field."""
    oblique: float = 0.1
    static: tuple[float, float] = (0.0, 0.25)
    """SD of the pattern fixed on the camera, as that of the noise relative to the contrast of the stack."""
    noise: tuple[float, float] = (0.03, 0.5)
    """Uniform in its logarithm."""
    dust: tuple[float, float] = (0.0, 150.0)
    """Rings per 1024 x 1024 pixels."""
    uneven: tuple[float, float] = (0.0, 0.6)
    """Natural logarithm of the brightest over the darkest light in a field."""
    confluency: tuple[float, float] = (0.05, 1.0)
    """This and the rest are those of `acq_isl.sim.specimen.epithelium.Monolayer`."""
    cell_um: tuple[float, float] = (15.0, 36.0)
    mitotic: tuple[float, float] = (0.0, 0.1)
    rounded: tuple[float, float] = (0.0, 0.08)
    dead: tuple[float, float] = (0.0, 0.15)
    debris: tuple[float, float] = (0.0, 3.0)
    granules: tuple[float, float] = (0.2, 2.5)
    index: tuple[float, float] = (0.5, 1.6)
    height: tuple[float, float] = (0.6, 1.5)


@plain_dataclass(frozen=True, slots=True, eq=False)
class EpithelialPair:
    """A recorded-looking (z, y, x) stack at rising heights, and (label, y, x) its truth times 255."""

    stack: Uint16Image
    z_um: tuple[float, ...]
    labels: NDArray[np.uint8]


def simulate_epithelium(config: EpitheliumConfig, index: int) -> EpithelialPair:
    """Simulate one field; the same configuration and index always give the same pair. Indices from
    ``config.fields`` on are the held-out ones: they differ in everything that is random."""
    rng = np.random.default_rng([config.seed, index, 3])
    culture = Monolayer(
        *(
            rng.uniform(*span)
            for span in (config.confluency, config.cell_um, config.mitotic, config.rounded, config.dead,
                         config.debris, config.granules, config.index, config.height)
        )
    )  # fmt: skip
    optics = _draw_optics(config, rng)
    specimen = EpithelialSpecimen(int(rng.integers(2**31)), optics, culture, Sensor(0, 0.0, 0.0))
    z_um = _draw_heights(config, rng)
    pixel_um, place_um = rng.uniform(*config.pixel_um), rng.uniform(-5000, 5000, 2)
    shape = (config.side_px, config.side_px)
    # Apertures are those drawn, whatever the pixel.
    specimen.optics = optics.scaled((pixel_um / 0.3) ** 0.7)
    # As float64: rounding is then that with which the shipped model was trained.
    view = View(place_um[0], place_um[1], 0.0, "Phase", pixel_um, shape)
    light = np.stack([specimen.render(replace(view, z_um=z)) for z in z_um])
    if rng.random() < 0.5:  # the stage counts the other way
        light, z_um = light[::-1], tuple(-z for z in reversed(z_um))
    truth = specimen.truth(view)
    labels = np.rint(255 * np.stack([truth[name] for name in LABELS])).astype(np.uint8)
    return EpithelialPair(_expose(light, config, rng, pixel_um), z_um, labels)


def _log_uniform(rng: np.random.Generator, span: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(span))))


def _draw_heights(config: EpitheliumConfig, rng: np.random.Generator) -> tuple[float, ...]:
    least, most = config.planes
    count = most if rng.random() < 0.5 else int(rng.integers(least, most + 1))
    step = _log_uniform(rng, config.z_step_um)
    steps = step * (rng.uniform(0.3, 1.7, count - 1) if rng.random() < 0.5 else np.ones(count - 1))
    heights = np.concatenate([[0.0], np.cumsum(steps)])
    return tuple((heights - heights[-1] / 2 + rng.uniform(*config.focus_um)).tolist())


def _draw_optics(config: EpitheliumConfig, rng: np.random.Generator) -> Transmitted:
    aperture, wavelength = rng.uniform(*config.aperture), rng.uniform(0.48, 0.65)
    kind = rng.random()
    if kind < config.phase_contrast:
        middle, half = aperture * rng.uniform(0.3, 0.55), rng.uniform(0.008, 0.03)
        shift, angle = rng.uniform(0, 0.08), rng.uniform(0, 2 * np.pi)
        return PhaseContrast(
            wavelength, 1.33, aperture, (middle - half, middle + half),
            (shift * np.cos(angle), shift * np.sin(angle)), rng.uniform(0.08, 0.35),
            bool(rng.random() < 0.85), coarse_points=60,
        )  # fmt: skip
    if kind < config.phase_contrast + config.oblique:
        reach = (rng.uniform(0.1, 0.7), rng.uniform(0.8, 0.95))
        return Oblique(wavelength, 1.33, aperture, rng.uniform(0, 2 * np.pi), reach, coarse_points=60)
    return Brightfield(wavelength, 1.33, aperture, aperture * _log_uniform(rng, config.condenser))


def _expose(
    light: Float32Image, config: EpitheliumConfig, rng: np.random.Generator, pixel_um: float
) -> Uint16Image:
    """Counts of a noise-free stack in uneven light, with a pattern fixed on the camera, and noise."""
    relative = light / np.float32(light.mean())
    counts = np.clip(relative * _LEVEL, 0, 65535).astype(np.uint16)
    contrast = max(contrast_sd(counts, _HIGH_PASS_UM / pixel_um) / _LEVEL, 1e-5)
    sensor = Sensor(int(rng.integers(2**31)), 1.0, rng.uniform(*config.dust), rng.uniform(2.0, 8.0))
    origin = (int(rng.integers(1024)), int(rng.integers(1024)))
    static = on_sensor(sensor.pattern(), origin, light.shape[1:], 1)
    relative = relative * (1 + np.float32(contrast * rng.uniform(*config.static)) * static)
    relative *= _shading(config, rng, light.shape[1:])
    noise = rng.standard_normal(light.shape, np.float32)
    if rng.random() < 0.5:  # as of an image that was brought to these pixels
        noise = ndimage.gaussian_filter(noise, (0, 0.6, 0.6))
        noise /= noise.std()
    relative += np.float32(contrast * _log_uniform(rng, config.noise)) * noise
    # Weak contrast is brought to what a camera of few bits still shows.
    level = _LEVEL * rng.uniform(0.3, 1.0)
    counted: Uint16Image = np.clip(np.rint(level * relative), 0, 65535).astype(np.uint16)
    return counted


def _shading(config: EpitheliumConfig, rng: np.random.Generator, shape: tuple[int, ...]) -> Float32Image:
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(*config.uneven)
    bowl = rng.uniform(*config.uneven)
    y, x = (np.linspace(-0.5, 0.5, side) for side in shape)
    along = np.cos(angle) * x + np.sin(angle) * y[:, None]
    log = slope * along / (abs(np.cos(angle)) + abs(np.sin(angle))) - bowl * (x**2 + y[:, None] ** 2)
    shading: Float32Image = np.exp(log).astype(np.float32)
    return shading
