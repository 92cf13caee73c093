"""How far a label image is shifted against the structure that its z-stack shows.

Cells scatter light differently from plane to plane, so the variance through focus is bright where there is
something to stain. Its logarithm and the label are correlated at every shift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

Image = NDArray[np.float32]

_FINE_PX, _COARSE_PX = 2.0, 20.0
_REACH_PX = 80
_MAD_TO_SD = 1.4826


@dataclass(frozen=True, slots=True)
class Registration:
    """Where a label and the structure in the stack agree best.

    Parameters
    ----------
    shift_px : (int, int)
        Rows and columns by which the label lies further than the structure.
    peak : float
        Correlation there above the median over all shifts, in robust standard deviations: below about 5
        there is nothing to be seen.
    gain : float
        How much better it is than no shift, in the same unit.
    """

    shift_px: tuple[int, int]
    peak: float
    gain: float

    @property
    def length_px(self) -> float:
        """Length of the shift in pixels."""
        return float(np.hypot(*self.shift_px))


def structure(stack: NDArray[np.uint16]) -> Image:
    """Logarithm of the variance through focus of a (z, y, x) stack; of one plane, of its gradient."""
    planes = stack.astype(np.float32)
    raw = planes.var(axis=0) if len(planes) > 1 else ndimage.gaussian_gradient_magnitude(planes[0], 1.0)
    smooth = ndimage.gaussian_filter(raw, _FINE_PX)
    seen: Image = np.log(smooth + 1e-3 * smooth.mean() + 1e-6)
    return seen


def registration(seen: Image, label: NDArray[Any]) -> Registration:
    """Find the shift of a label.

    Parameters
    ----------
    seen : (y, x) float32
        From `structure`.
    label : (y, x) array

    Returns
    -------
    Registration
        Measured on the real field of the design notes: known shifts of up to 60 px come back within 5 px
        with peaks of 9 to 18; a mirrored label has 3 to 4.
    """
    bright = np.sqrt(np.maximum(label.astype(np.float32) - np.float32(np.percentile(label, 1)), 0))
    agreement = _correlation(_band(bright), _band(seen))
    reach = min(_REACH_PX, min(seen.shape) // 4)
    rows, columns = (side // 2 for side in agreement.shape)
    near = agreement[rows - reach : rows + reach + 1, columns - reach : columns + reach + 1]
    best = np.unravel_index(int(near.argmax()), near.shape)
    middle = float(np.median(near))
    sd = max(_MAD_TO_SD * float(np.median(np.abs(near - middle))), 1e-9)
    top = float(near[best])
    return Registration(
        (int(best[0]) - reach, int(best[1]) - reach),
        (top - middle) / sd,
        (top - float(near[reach, reach])) / sd,
    )


def _band(image: Image) -> Image:
    """Without grain and without uneven light, and without edges where the field ends."""
    flat = ndimage.gaussian_filter(image, _FINE_PX) - ndimage.gaussian_filter(image, _COARSE_PX)
    window = np.outer(*(np.hanning(side) for side in image.shape))
    windowed: Image = ((flat - flat.mean()) * window).astype(np.float32)
    return windowed


def _correlation(a: Image, b: Image) -> Image:
    """Normalised cross-correlation, no shift in the middle."""
    product = fft.rfft2(a) * np.conj(fft.rfft2(b))
    scale = max(float(np.sqrt(np.square(a).sum() * np.square(b).sum())), 1e-12)
    surface: Image = fft.fftshift(fft.irfft2(product, a.shape)) / scale
    return surface
