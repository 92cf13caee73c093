"""The mean over all fields, from those that were visited, with known probability of being visited. Pure.

A rule visits the fields where it expects most, so their mean says more about the rule than the specimen.
Weighted by one over the probability with which each was visited, it is right on average (Horvitz and
Thompson, J. Am. Stat. Assoc. 47, 663, 1952).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean over all fields and its 95 % interval; NaN where it is not known."""

    mean: float
    low: float
    high: float


def naive_mean(values: Sequence[float]) -> MeanEstimate:
    """The mean of what was visited, as if that had been chosen at random."""
    known = np.asarray(values, float)
    if known.size < 2:
        return MeanEstimate(float(known.mean()) if known.size else math.nan, math.nan, math.nan)
    return _interval(float(known.mean()), float(known.std(ddof=1)) / math.sqrt(known.size), known.size - 1)


def horvitz_thompson(
    values: Sequence[float],
    probabilities: Sequence[float],
    population: int,
    expected: Sequence[float] = (),
    expected_mean: float = 0.0,
) -> MeanEstimate:
    """Mean over a population of which each member was visited independently, with a known probability.

    Parameters
    ----------
    values, probabilities : sequence of float
        What was found at the members that were visited; the probability of each of being visited, above 0.
    population : int
        How many members there are.
    expected, expected_mean : optional
        What was expected at the same members, such as by a prediction, and its mean over the population: then
        only the differences are weighted, which narrows the interval as far as the expectation was right, and
        leaves the mean right on average however wrong it was.

    The interval is normal, widened by Student's t for the members that were not certain to be visited; NaN
    with fewer than two of these, unless all were certain.
    """
    found, pi = np.asarray(values, float), np.asarray(probabilities, float)
    differences = found - np.asarray(expected, float) if len(expected) else found
    mean = (expected_mean if len(expected) else 0.0) + float((differences / pi).sum()) / population
    drawn = int((pi < 1).sum())
    variance = float(((1 - pi) * np.square(differences / pi)).sum()) / population**2
    if drawn == 0 and len(found) == population:
        return MeanEstimate(mean, mean, mean)
    if drawn < 2:
        return MeanEstimate(mean, math.nan, math.nan)
    return _interval(mean, math.sqrt(variance), drawn - 1)


def _interval(mean: float, sd: float, degrees: int) -> MeanEstimate:
    away = float(special.stdtrit(degrees, (1 + _CONFIDENCE) / 2)) * sd
    return MeanEstimate(mean, mean - away, mean + away)
