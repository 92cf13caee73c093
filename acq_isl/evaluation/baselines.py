"""What any prediction is to be read beside: a floor that needs no learning, and a ceiling. Pure."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from acq_isl.stack import Float32Image

# Immerkaer, "Fast Noise Variance Estimation", Computer Vision and Image Understanding 64 (1996).
_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def fit_line(guess: Float32Image, truth: Float32Image) -> Float32Image:
    """``guess`` scaled and shifted to the least squared difference from ``truth``, which favours it."""
    centred = guess - guess.mean(dtype=np.float64)
    power = float(np.mean(np.square(centred, dtype=np.float64)))
    slope = float(np.mean(centred * (truth - truth.mean(dtype=np.float64)))) / power if power > 0 else 0.0
    return np.asarray(slope * centred + truth.mean(dtype=np.float64), np.float32)


def expose_again(truth: Float32Image, displaced_px: float, seed: int) -> Float32Image:
    """The real stain as a second exposure might show it: its noise drawn again, and a little displaced.

    The noise's SD is estimated from the image (Immerkaer 1996), which structure as fine as a pixel
    makes too large; the ceiling is then too low rather than too high. The image is moved by
    ``displaced_px`` in a random direction: as far as stain and transmitted light may be apart.
    """
    if min(truth.shape) < 3:
        return truth
    rng = np.random.default_rng(seed)
    rough = ndimage.convolve(truth, _NOISE_KERNEL)[1:-1, 1:-1]
    sd = float(np.sqrt(np.pi / 2) * np.abs(rough).mean(dtype=np.float64) / 6)
    angle = rng.uniform(0, 2 * np.pi)
    way = displaced_px * np.sin(angle), displaced_px * np.cos(angle)
    moved: Float32Image = ndimage.shift(truth, way, order=1, mode="nearest")
    return moved + np.float32(sd) * rng.standard_normal(truth.shape, np.float32)
