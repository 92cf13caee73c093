"""How alike two images are. Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CONSTANT = 1e-12  # of the mean square: what rounding leaves of a variance that is 0


def pearson(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Pearson correlation of two arrays of one shape and any real dtype, over all their elements, in float64.

    From -1 to 1; NaN if either array is constant, empty, or has an element that is not finite. ValueError if
    the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"arrays of shape {a.shape} and {b.shape} cannot be correlated")
    x, y = (np.asarray(values, np.float64).ravel() for values in (a, b))
    if x.size == 0 or not (np.isfinite(x).all() and np.isfinite(y).all()) or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(x @ x) * math.sqrt(y @ y)
    return float(np.clip(x @ y / scale, -1.0, 1.0)) if scale > 0 else math.nan


def pearson_of_sums(n: float, a: float, b: float, aa: float, bb: float, ab: float) -> float:
    """`pearson` of ``n`` elements from their sums, the sums of their squares, and of their products."""
    if n <= 0:
        return math.nan
    var_a, var_b = aa - a * a / n, bb - b * b / n
    if not (var_a > _CONSTANT * aa and var_b > _CONSTANT * bb):
        return math.nan
    return float(np.clip((ab - a * b / n) / math.sqrt(var_a * var_b), -1.0, 1.0))
