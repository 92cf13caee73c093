"""Training pairs from the simulated microscope: random specimen, random optics, known truth."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from scipy import ndimage

from acq_isl.experiment.simulated import Life
from acq_isl.processing.normalize import contrast_sd
from acq_isl.sim.optics.illumination import LIVE_PHASE_CONTRAST, Oblique, PhaseContrast, Transmitted
from acq_isl.sim.scope.camera import Camera
from acq_isl.sim.specimen.cells import Culture
from acq_isl.sim.specimen.sensor import Sensor, on_sensor
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.view import CameraSettings, View
from acq_isl.stack import Float32Image, Uint16Image

LABELS = ("nuclei", "dendrites", "axons", "dead")
_MID = 32768.0
_CONTRAST = 7300.0
_FLATTEN_UM = 10.0
_OFF = (0.0, 0.0)


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class SimulationConfig:
    """Ranges of the simulated fields; pairs are (low, high) of a uniform distribution."""

    seed: int = 0
    fields: int = 160
    """To train on."""
    held_out: int = 12
    """Of other specimens, for validation and calibration."""
    side_px: int = 384
    planes: int = 13
    pixel_um: tuple[float, float] = (0.275, 0.33)
    z_step_um: tuple[float, float] = (0.6, 2.2)
    focus_um: tuple[float, float] = (-3.0, 3.0)
    """Of the middle plane."""
    aperture: tuple[float, float] = (0.42, 0.58)
    annulus_radius: tuple[float, float] = (0.17, 0.26)
    """In numerical aperture, as the next two."""
    annulus_width: tuple[float, float] = (0.02, 0.06)
    decentre: tuple[float, float] = (0.025, 0.1)
    transmission: tuple[float, float] = (0.08, 0.35)
    """Of the phase ring."""
    oblique: float = 0.4
    """Share of fields in ring-less oblique light."""
    bright: float = 0.1
    """Share of phase contrast with inverted phase."""
    reversed_z: float = 0.5
    """Share of stacks whose planes go the other way relative to the light."""
    static: tuple[float, float] = (0.15, 0.5)
    """SD of the pattern fixed on the camera, as that of the noise relative to the contrast of the stack."""
    noise: tuple[float, float] = (0.2, 0.45)
    dust: tuple[float, float] = (20.0, 250.0)
    """Rings per 1024 x 1024 pixels."""
    density: tuple[float, float] = (0.5, 1.8)
    """This and the next four are those of `acq_isl.sim.specimen.cells.Culture`."""
    debris: tuple[float, float] = (0.4, 2.0)
    carpet: tuple[float, float] = (0.5, 2.5)
    index: tuple[float, float] = (0.6, 1.3)
    height: tuple[float, float] = (0.7, 1.4)
    dying: tuple[float, float] = (0.0, 0.0)
    """Share of neurons that are dying or dead; what others left behind is `debris`."""
    live: float = 0.0
    """Share of fields in the light and on the camera of the simulated microscope, which flattens nothing."""
    uneven: tuple[float, float] = (0.0, 0.0)
    """Natural logarithm of the brightest over the darkest light in a field of that share."""


@plain_dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A recorded-looking (z, y, x) stack, and (label, y, x) its truth times 255 in the order of `LABELS`."""

    stack: Uint16Image
    labels: NDArray[np.uint8]


@plain_dataclass(frozen=True, slots=True, eq=False)
class _Draw:
    """What is random about a field before its light is computed; ``rng`` goes on from there."""

    rng: np.random.Generator
    optics: Transmitted
    culture: Culture
    seed: int
    place_um: tuple[float, float]
    z_um: NDArray[np.float64]
    pixel_um: float
    life: Life
    time_s: float
    live: bool


def _draw(config: SimulationConfig, index: int) -> _Draw:
    rng = np.random.default_rng([config.seed, index])
    optics = random_optics(config, rng)
    culture = Culture(*(rng.uniform(*r) for r in (config.density, config.debris, config.carpet, config.index,
                                                  config.height)))  # fmt: skip
    seed = int(rng.integers(2**31))
    x_um, y_um = rng.uniform(-5000, 5000, 2)
    step = rng.uniform(*config.z_step_um) * (-1 if rng.random() < config.reversed_z else 1)
    planes = np.arange(config.planes, dtype=np.float64) - (config.planes - 1) / 2
    z_um = np.asarray(rng.uniform(*config.focus_um) + step * planes, np.float64)
    pixel = rng.uniform(*config.pixel_um)
    # What is switched off draws nothing, so that older configurations give what they gave.
    life, time_s = (Life(), 0.0) if config.dying == _OFF else _dying(config, rng)
    live = config.live > 0 and rng.random() < config.live
    optics = LIVE_PHASE_CONTRAST if live else optics
    return _Draw(rng, optics, culture, seed, (x_um, y_um), z_um, pixel, life, time_s, live)


def is_live(config: SimulationConfig, index: int) -> bool:
    """Whether a field is in the light of the simulated microscope."""
    return config.live > 0 and _draw(config, index).live


def simulate(config: SimulationConfig, index: int) -> Pair:
    """Simulate one field; the same configuration and index always give the same pair. Indices from
    ``config.fields`` on are the held-out ones: they differ in everything that is random."""
    draw = _draw(config, index)
    sensor = Sensor(draw.seed) if draw.live else Sensor(0, 0.0, 0.0)
    specimen = SyntheticSpecimen(draw.seed, draw.optics, draw.culture, sensor, draw.life)
    shape = (config.side_px, config.side_px)
    views = [
        View(*draw.place_um, float(z), "Phase", draw.pixel_um, shape, time_s=draw.time_s) for z in draw.z_um
    ]
    light = np.stack([specimen.render(view) for view in views])
    rng, pixel_um = draw.rng, draw.pixel_um
    stack = expose(light, config, rng) if draw.live else record(light, config, rng, pixel_um)
    truth = specimen.truth(views[0])
    labels = np.stack([truth[name] for name in LABELS])
    return Pair(stack, np.rint(255 * labels).astype(np.uint8))


def _dying(config: SimulationConfig, rng: np.random.Generator) -> tuple[Life, float]:
    """Cells at all stages of dying, and dead for a while: those of time 0, some time later."""
    life = Life(prevalence=rng.uniform(*config.dying))
    return life, rng.uniform(0, 2 * 3600.0 * life.dying_h)


def random_optics(config: SimulationConfig, rng: np.random.Generator) -> Transmitted:
    """Draw a decentred phase contrast or an oblique illumination."""
    aperture, wavelength = rng.uniform(*config.aperture), rng.uniform(0.5, 0.6)
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < config.oblique:
        reach = (rng.uniform(0.4, 0.7), rng.uniform(0.8, 0.95))
        return Oblique(wavelength, 1.33, aperture, angle, reach)
    middle, half = rng.uniform(*config.annulus_radius), rng.uniform(*config.annulus_width) / 2
    shift = rng.uniform(*config.decentre)
    return PhaseContrast(
        wavelength, 1.33, aperture, (middle - half, middle + half),
        (shift * np.cos(angle), shift * np.sin(angle)), rng.uniform(*config.transmission),
        bool(rng.random() >= config.bright),
    )  # fmt: skip


def record(
    light: Float32Image, config: SimulationConfig, rng: np.random.Generator, pixel_um: float
) -> Uint16Image:
    """Flatten a noise-free stack, add what is fixed on the camera, then noise, and make it counts. Recorded
    stacks of this kind are flattened by subtracting a wide Gaussian and scaled plane by plane."""
    sigma = (0, _FLATTEN_UM / pixel_um, _FLATTEN_UM / pixel_um)
    flat = light - ndimage.gaussian_filter(light, sigma, truncate=2.5)
    # Contrast as the network will measure it, so that shares of noise mean the same for every field.
    scale = contrast_sd(np.clip(flat * 30000 + _MID, 0, 65535).astype(np.uint16), 6.0 / pixel_um) / 30000
    flat /= max(scale, 1e-6)
    sensor = Sensor(int(rng.integers(2**31)), 1.0, rng.uniform(*config.dust), rng.uniform(2.0, 8.0))
    origin = (int(rng.integers(1024)), int(rng.integers(1024)))
    static = on_sensor(sensor.pattern(), origin, flat.shape[1:], 1)
    flat += np.float32(rng.uniform(*config.static)) * static
    flat += np.float32(rng.uniform(*config.noise)) * rng.standard_normal(flat.shape, np.float32)
    flat /= flat.std(axis=(1, 2), keepdims=True)
    counts: Uint16Image = np.clip(_MID + _CONTRAST * flat, 0, 65535).astype(np.uint16)
    return counts


def expose(light: Float32Image, config: SimulationConfig, rng: np.random.Generator) -> Uint16Image:
    """What the camera of the simulated microscope counts of a noise-free stack, in uneven light."""
    if config.uneven != _OFF:
        angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(*config.uneven)
        y, x = (np.linspace(-0.5, 0.5, side) for side in light.shape[1:])
        along = np.cos(angle) * x + np.sin(angle) * y[:, None]
        light = light * np.exp(slope * along / (abs(np.cos(angle)) + abs(np.sin(angle)))).astype(np.float32)
    camera = Camera(CameraSettings(), seed=int(rng.integers(2**31)))
    frames = [camera.read(plane, flux=1.0, bit_depth=16, frame=(0, z)) for z, plane in enumerate(light)]
    return np.stack(frames).astype(np.uint16, copy=False)
