"""Separate objects in an image, numbered, and matched with other such objects. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.stack import Float32Image

_SMOOTH_UM = 0.5

Mask = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ObjectScore:
    """Objects found against true objects. Never show a count without the F1 beside it."""

    f1: float
    """2 matched / (found + true); NaN if there are no objects in either."""
    found: int
    true: int
    matched: int


def segment(image: Float32Image, above: float, min_area_um2: float, pixel_size_um: float) -> Mask:
    """Separate objects brighter than a threshold; touching round ones are split at their waist.

    Parameters
    ----------
    image : (y, x) float32
    above : float
        Threshold, on the image smoothed with a Gaussian of 0.5 um.

    Returns
    -------
    (y, x) int32
        0 is background, objects are numbered from 1 without gaps.
    """
    from skimage.segmentation import watershed

    bright = smooth(image, pixel_size_um) > above
    min_px = min_area_um2 / pixel_size_um**2
    bright = _drop_small(ndimage.label(bright)[0], min_px) > 0
    if not bright.any():
        return np.zeros(image.shape, np.int32)
    # Holes smaller than an object are filled; what a network of processes encloses stays background.
    holes = ndimage.label(~bright)[0]
    bright |= (holes > 0) & (_drop_small(holes, min_px) == 0)
    # Depth maxima closer than the width of one small object belong to the same object.
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(bright), 1.0 / pixel_size_um)
    apart = max(int(np.sqrt(min_px / np.pi) * 1.5), 1)
    components = ndimage.label(bright)[0]
    peaks = spots(depth, apart, components)
    seeds = np.zeros(image.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    objects = watershed(-depth, seeds, mask=bright)
    return number_objects(_drop_small(objects, min_px))


def object_score(found: Mask, true: Mask, iou: float = 0.5) -> ObjectScore:
    """F1 of numbered objects, as from `segment`, matched one to one at an intersection over union >= ``iou``.

    Where several matches are possible (``iou`` below 0.5), the one with the largest summed overlap counts.
    """
    from scipy.optimize import linear_sum_assignment

    n_found, n_true = int(found.max(initial=0)), int(true.max(initial=0))
    if n_found == 0 or n_true == 0:
        return ObjectScore(0.0 if n_found or n_true else float("nan"), n_found, n_true, 0)
    pairs = found.astype(np.int64).ravel() * (n_true + 1) + true.ravel()
    overlap = np.bincount(pairs, minlength=(n_found + 1) * (n_true + 1)).reshape(n_found + 1, n_true + 1)
    union = overlap.sum(1, keepdims=True) + overlap.sum(0, keepdims=True) - overlap
    ratio = np.divide(overlap, union, out=np.zeros(overlap.shape), where=union > 0)[1:, 1:]
    ratio[ratio < iou] = 0
    rows, columns = linear_sum_assignment(-ratio)
    matched = int(np.count_nonzero(ratio[rows, columns]))
    return ObjectScore(2 * matched / (n_found + n_true), n_found, n_true, matched)


def number_objects(objects: NDArray[Any]) -> Mask:
    """Objects of a (y, x) integer image, 0 is background, numbered from 1 without gaps."""
    there = np.bincount(objects.ravel()) > 0
    there[0] = False
    return np.asarray(np.cumsum(there, dtype=np.int32)[objects] * (objects > 0), np.int32)


def smooth(image: Float32Image, pixel_size_um: float) -> Float32Image:
    """The image after a Gaussian of 0.5 um, less noisy than the smallest nucleus is wide."""
    return np.asarray(ndimage.gaussian_filter(np.asarray(image, np.float32), _SMOOTH_UM / pixel_size_um))


def _drop_small(objects: NDArray[Any], min_px: float) -> NDArray[Any]:
    small = np.bincount(objects.ravel()) < min_px
    return np.where(small[objects], 0, objects)


def spots(
    image: NDArray[Any], apart_px: int, labels: NDArray[Any] | None = None, above: float | None = None
) -> NDArray[np.intp]:
    """Row and column of local maxima at least ``apart_px`` apart, (spot, 2); only of those ``above``."""
    from skimage.feature import peak_local_max

    found = peak_local_max(
        image, min_distance=apart_px, labels=labels, threshold_abs=above, exclude_border=False
    )
    return np.asarray(found)
