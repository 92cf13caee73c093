"""How alike two images are, in pattern and in brightness. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
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


_TOP = 99.0
_DARK = 0.02  # a bright end below which an image shows too little to be compared by it


@dataclass(frozen=True, slots=True)
class Amplitude:
    """How bright a prediction is beside its stain, which a correlation does not say; NaN where not known.

    ``slope`` is by how much the stain rises where the prediction rises by 1 (least squares), ``top`` the 99th
    percentile of the prediction over the stain's. Both are 1 if the brightness is right.
    """

    slope: float = math.nan
    top: float = math.nan

    @classmethod
    def of(cls, predicted: NDArray[Any], truth: NDArray[Any]) -> Amplitude:
        """Of two images of one shape in which 0 is background and 1 the bright end of the stain."""
        a, b = (np.asarray(values, np.float64).ravel() for values in (predicted, truth))
        slope = slope_of_sums(a.size, float(a.sum()), float(b.sum()), float(a @ a), float(a @ b))
        return cls(slope, ratio_of_tops(bright_end(a), bright_end(b)))

    @classmethod
    def mean(cls, found: Iterable[Amplitude]) -> Amplitude:
        """Of several fields, each number of those where it is known."""
        values = np.array([(each.slope, each.top) for each in found], np.float64).reshape(-1, 2).T
        known = (own[np.isfinite(own)] for own in values)
        return cls(*(float(own.mean()) if own.size else math.nan for own in known))


def bright_end(values: NDArray[Any]) -> float:
    """99th percentile; NaN of nothing."""
    return float(np.percentile(values, _TOP)) if values.size else math.nan


def ratio_of_tops(predicted: float, true: float) -> float:
    """Of the bright ends of prediction and stain; NaN where the stain has none."""
    return predicted / true if true > _DARK else math.nan


def slope_of_sums(n: float, a: float, b: float, aa: float, ab: float) -> float:
    """Slope of b on a, by least squares, from sums as of `pearson_of_sums`; NaN where a is constant."""
    variance = aa - a * a / n if n > 0 else 0.0
    return float((ab - a * b / n) / variance) if variance > _CONSTANT * aa else math.nan
