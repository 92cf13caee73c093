"""Where in a stack the focus lies, by the contrast of its planes at the scale of cells' parts. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from acq_isl.stack import Uint16Image

# Between these scales contrast is highest in focus in phase contrast of either polarity and in fluorescence.
# Finer detail of a transparent specimen is lowest there, and most of it is noise.
_FINE_UM, _COARSE_UM = 1.2, 4.0


def contrast_at_scale(plane: Uint16Image, pixel_size_um: float) -> float:
    """Variance of a (y, x) plane between 1.2 and 4 um, as a share of its mean squared; NaN if too small."""
    block = max(round(_FINE_UM / pixel_size_um), 1)
    rows, columns = (side // block for side in plane.shape)
    if min(rows, columns) < 2:
        return math.nan
    lines = np.add.reduce(plane[: rows * block].reshape(rows, block, -1), axis=1, dtype=np.uint32)
    sums = lines[:, : columns * block].reshape(rows, columns, block).sum(axis=2, dtype=np.uint32)
    means = sums.astype(np.float32) / block**2
    around = ndimage.gaussian_filter(means, _COARSE_UM / (block * pixel_size_um))
    return float(np.var(means - around)) / max(float(means.mean()) ** 2, 1e-9)


def focus_offset(z_um: Sequence[float], contrasts: Sequence[float]) -> float | None:
    """Height of most contrast above the middle of a stack, in the unit of ``z_um``; None if it is not known.

    The highest point of a parabola through the plane with most contrast and those within two planes of it. At
    either end of the stack the focus lies outside, and is not known.
    """
    order = np.argsort(z_um)
    z, values = np.asarray(z_um, float)[order], np.asarray(contrasts, float)[order]
    if len(z) < 3 or len(np.unique(z)) < len(z) or not np.isfinite(values).all() or np.ptp(values) == 0:
        return None
    best = int(np.argmax(values))
    if best in (0, len(z) - 1):
        return None
    near = slice(max(best - 2, 0), best + 3)
    square, slope, _ = np.polyfit(z[near] - z[best], values[near] / values[best], 2)
    found = z[best] - slope / (2 * square) if square < 0 else z[best]
    return float(np.clip(found, z[0], z[-1]) - (z[0] + z[-1]) / 2)
