"""From one regular grid of samples to another, as sparse matrices for rows and columns. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from acq_isl.stack import Float32Image

_LOBES = 3


def centred_positions(count: int, step_um: float) -> Float32Image:
    """Places of ``count`` samples about 0, in um."""
    return ((np.arange(count) - (count - 1) / 2) * step_um).astype(np.float32)


def lanczos_matrix(at_um: Float32Image, step_um: float, count: int, out_step_um: float) -> Any:
    """Sparse (out, count) float32 matrix, rows of sum 1, that resamples ``count`` samples.

    ``at_um`` (out,) are the places wanted, from the first sample; ``step_um`` and ``out_step_um`` are the
    distances of the samples there are, and of those wanted; it is a low pass where it makes fewer.
    """
    width = max(step_um, out_step_um)
    places, distance = _near(at_um, step_um, count, _LOBES * width)
    distance = distance / width
    weights = np.sinc(distance) * np.sinc(distance / _LOBES) * (np.abs(distance) < _LOBES)
    return _matrix(places, weights, count)


def resample(rows: Any, image: Float32Image, columns: Any) -> Float32Image:
    """Resample the last two axes of an image by one matrix each."""
    if image.ndim > 2:
        return np.stack([resample(rows, layer, columns) for layer in image])
    # A sparse matrix works on rows of memory, so the image is turned for its second axis.
    turned = columns @ np.ascontiguousarray((rows @ image).T)
    resampled: Float32Image = np.ascontiguousarray(turned.T, dtype=np.float32)
    return resampled


def _near(
    at_um: Float32Image, step_um: float, count: int, reach_um: float
) -> tuple[NDArray[np.intp], Float32Image]:
    """Samples within reach of each place: number and distance in um, both (out, taps)."""
    first = np.ceil((at_um - reach_um) / step_um).astype(np.intp)
    places = first[:, None] + np.arange(int(np.floor(2 * reach_um / step_um)) + 2)
    distance = at_um[:, None] - (places * step_um).astype(np.float32)
    return np.where((places >= 0) & (places < count), places, -1), distance.astype(np.float32)


def _matrix(places: NDArray[np.intp], weights: NDArray[np.floating], count: int) -> Any:
    weights = np.where(places >= 0, weights, 0.0)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    row = np.broadcast_to(np.arange(len(places))[:, None], places.shape)
    used = weights != 0
    return sparse.csr_array((weights[used], (row[used], places[used])), shape=(len(places), count))
