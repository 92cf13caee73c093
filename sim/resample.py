"""A recorded field without edges, at any pixel size. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from acq_isl.stack import Float32Image

Recording = NDArray[np.uint8 | np.uint16]


def mirror_runs(start: int, length: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut ``length`` pixels of an axis repeated as its mirror image into copies of slices.

    Parameters
    ----------
    start : int
        First pixel, any integer; 0 to ``size`` - 1 is the axis itself, -1 repeats pixel 0.
    length, size : int
        Pixels wanted; pixels recorded.

    Yields
    ------
    target, source : slice
        The source slice runs backwards on mirrored stretches.
    """
    done = 0
    while done < length:
        place = (start + done) % (2 * size)
        if place < size:
            count = min(size - place, length - done)
            source = slice(place, place + count)
        else:
            first = 2 * size - 1 - place
            count = min(first + 1, length - done)
            source = slice(first, first - count if count <= first else None, -1)
        yield slice(done, done + count), source
        done += count


def mirrored(
    planes: list[tuple[Recording, float]], start: tuple[int, int], shape: tuple[int, int]
) -> Float32Image:
    """Weighted sum of planes over a region of the mirrored field, as light."""
    light = np.empty(shape, np.float32)
    size = planes[0][0].shape
    full_scale = float(np.iinfo(planes[0][0].dtype).max)
    for to_rows, rows in mirror_runs(start[0], shape[0], size[0]):
        for to_columns, columns in mirror_runs(start[1], shape[1], size[1]):
            target = light[to_rows, to_columns]
            first, weight = planes[0]
            np.multiply(first[rows, columns], np.float32(weight / full_scale), out=target)
            for plane, weight in planes[1:]:
                target += plane[rows, columns] * np.float32(weight / full_scale)
    return light


def resampling(start: float, ratio: float, count: int) -> tuple[int, Any]:
    """First recorded pixel needed, and the (count, needed) sparse matrix that makes view pixels of them.

    View pixel j covers ``start + j * ratio`` to one ratio further on the axis of recorded pixel edges:
    larger pixels average what they cover, smaller ones interpolate between pixel centres.
    """
    pixel = np.arange(count)
    entries = []
    if ratio >= 1:
        left = start + pixel * ratio
        for step in range(math.ceil(ratio) + 1):
            source = np.floor(left) + step
            covered = np.minimum(source + 1, left + ratio) - np.maximum(source, left)
            entries.append((source, np.maximum(covered, 0.0) / ratio))
    else:
        centre = start + (pixel + 0.5) * ratio - 0.5
        below = np.floor(centre)
        entries += [(below, 1 - (centre - below)), (below + 1, centre - below)]
    source = np.concatenate([places for places, _ in entries]).astype(int)
    weight = np.concatenate([weights for _, weights in entries]).astype(np.float32)
    first = int(source.min())
    target = np.tile(pixel, len(entries))
    shape = (count, int(source.max()) - first + 1)
    target, source, weight = target[weight > 0], source[weight > 0], weight[weight > 0]
    return first, sparse.csr_array((weight, (target, source - first)), shape=shape)
