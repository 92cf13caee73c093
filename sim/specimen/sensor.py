"""What stays in place on the camera when the stage moves: dust on the optics and grain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft

from acq_isl.stack import Float32Image

_PERIOD_PX = 1024


@dataclass(frozen=True, slots=True)
class Sensor:
    """SD of the grain, rings of dust on 1024 x 1024 pixels and their contrast, relative to the light."""

    seed: int = 0
    grain: float = 0.025
    dust: float = 90.0
    dust_contrast: float = 0.12

    def pattern(self) -> Float32Image:
        """One period of the pattern in unbinned sensor pixels, (1024, 1024) float32; the mean is 0."""
        rng = np.random.default_rng([self.seed, 7])
        shape = (_PERIOD_PX, _PERIOD_PX)
        f = np.hypot(fft.fftfreq(_PERIOD_PX)[:, None], fft.rfftfreq(_PERIOD_PX)[None])
        smooth = np.exp(-2 * (np.pi * 0.9 * f) ** 2) + 0.6 * np.exp(-2 * (np.pi * 2.5 * f) ** 2)
        noise = fft.irfft2(fft.rfft2(rng.standard_normal(shape, np.float32)) * smooth, shape)
        image = (self.grain * noise / max(float(noise.std()), 1e-9)).astype(np.float32)
        places = np.arange(_PERIOD_PX)
        for _ in range(int(rng.poisson(self.dust))):
            place, radius = rng.uniform(0, _PERIOD_PX, 2), rng.uniform(2.0, 6.0)
            strength = self.dust_contrast * rng.uniform(0.2, 1) * rng.choice((1, 1, 1, -1))
            lean = rng.uniform(-0.6, 0.6, 2)
            near = np.arange(-16, 17)
            rows, columns = ((int(p) + near) % _PERIOD_PX for p in place)
            y, x = ((near + int(p) - p) / radius for p in place)
            square = y[:, None] ** 2 + x[None] ** 2
            ring = (1 - square) * np.exp(-square) * (1 + lean[0] * y[:, None] + lean[1] * x[None])
            image[np.ix_(places[rows], places[columns])] += (strength * ring).astype(np.float32)
        centred: Float32Image = image - image.mean()
        return centred


def on_sensor(
    pattern: Float32Image, origin_px: tuple[int, int], shape: tuple[int, int], binning: int
) -> Float32Image:
    """The part of a periodic pattern that an image sees, averaged over each binned pixel."""
    rows, columns = (
        (start + np.arange(side * binning)) % period
        for start, side, period in zip(origin_px, shape, pattern.shape, strict=True)
    )
    part = pattern[np.ix_(rows, columns)]
    blocks = part.reshape(shape[0], binning, shape[1], binning)
    binned: Float32Image = blocks.mean(axis=(1, 3), dtype=np.float32) if binning > 1 else part
    return binned
