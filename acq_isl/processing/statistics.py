"""How alike two images are. Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CONSTANT = 1e-12  # of the mean square: what rounding leaves of a variance that is 0


def pearson(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Pearson correlation of two arrays over all their elements.

    Parameters
    ----------
    a, b : arrays of any real dtype and any shape, the same for both
        Computed in float64.

    Returns
    -------
    float
        -1 to 1; NaN if either array is constant, empty, or has an element that is not finite.

    Raises
    ------
    ValueError
        The shapes differ.
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
    """Pearson correlation from sums over elements that were seen in several parts.

    Parameters
    ----------
    n : float
        Number of elements.
    a, b, aa, bb, ab : float
        Sums of both arrays, of their squares, and of their product.

    Returns
    -------
    float
        -1 to 1; NaN if there is no element or either array is constant.
    """
    if n <= 0:
        return math.nan
    var_a, var_b = aa - a * a / n, bb - b * b / n
    if not (var_a > _CONSTANT * aa and var_b > _CONSTANT * bb):
        return math.nan
    return float(np.clip((ab - a * b / n) / math.sqrt(var_a * var_b), -1.0, 1.0))
