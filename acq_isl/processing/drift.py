"""How far a picture has moved against an earlier one of the same place. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.registration import phase_cross_correlation

from acq_isl.processing.statistics import pearson

_LEAST_R = 0.3
_FINE = 10  # parts of a pixel
_REACH = 0.4  # of a side: beyond that too little is left to compare


def find_drift(before: NDArray[Any], after: NDArray[Any]) -> tuple[float, float] | None:
    """Rows and columns by which ``after`` shows what ``before`` shows; None if they have nothing in common.

    Both (y, x) of one shape and any real type. By cross-correlation (Guizar-Sicairos 2008); believed if the
    parts that both show correlate by 0.3 afterwards.
    """
    if before.shape != after.shape:
        return None
    pictures = [np.asarray(picture, np.float32) for picture in (before, after)]
    window = np.outer(*(np.hanning(side) for side in before.shape)).astype(np.float32)
    still, moved = ((picture - picture.mean()) * window for picture in pictures)
    if not (still.any() and moved.any()):
        return None
    # Without whitening: the window, and noise, are alike in both, and would be what is found.
    back, *_ = phase_cross_correlation(still, moved, upsample_factor=_FINE, normalization=None)
    drift = -float(back[0]), -float(back[1])
    if any(abs(by) > _REACH * side for by, side in zip(drift, before.shape, strict=True)):
        return None
    first, second = (_common(picture, drift, sign) for picture, sign in zip(pictures, (-1, 1), strict=True))
    return drift if pearson(first, second) >= _LEAST_R else None


def _common(picture: NDArray[Any], drift: tuple[float, float], sign: int) -> NDArray[Any]:
    """The part that both pictures show, of the one that lies further by ``sign``."""
    rows, columns = (_inside(sign * round(by), side) for by, side in zip(drift, picture.shape, strict=True))
    return picture[rows, columns]


def _inside(by: int, side: int) -> slice:
    return slice(max(by, 0), side + min(by, 0))
