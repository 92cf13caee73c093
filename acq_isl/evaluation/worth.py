"""What an evaluation says in sentences: each label between floor and ceiling, its counts, its SD. Pure.

Scores come with the percentile interval of a bootstrap (Efron 1979) over the units that were held out as a
whole; of a single field over its blocks, which are alike: too narrow an interval for other fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acq_isl.evaluation.results import CEILING, FLOOR, MODEL, Report, Score
from acq_isl.evaluation.scores import PixelScore
from acq_isl.processing.statistics import Amplitude, pearson_of_sums
from acq_isl.scorecard import CountScore, say_counts, say_cover, weigh

_RESAMPLES = 1000
_LEVEL = 0.95
_FEW_UNITS, _FEW_BLOCKS = 5, 6
_SURELY = 0.975


@dataclass(frozen=True, slots=True)
class Agreement:
    """Pearson of a label's prediction with its interval; all NaN where they cannot be told.

    ``better`` is the share of resamples in which the prediction is above the floor. ``of`` is what was
    resampled."""

    label: str
    pearson: float
    low: float
    high: float
    floor: float
    ceiling: float
    better: float
    of: str
    amplitude: Amplitude

    @property
    def sentence(self) -> str:
        """The correlation is never given alone."""
        text = f"{self.label}: r = {self.pearson:.2f}"
        if math.isfinite(self.low):
            text += f" (95 % interval {self.low:.2f} to {self.high:.2f} over {self.of})"
        text += f". {weigh(self.pearson, self.floor, self.ceiling, self.amplitude)}"
        if math.isfinite(self.better) and self.better < _SURELY and self.pearson > self.floor:
            text += f" That it is above contrast at all holds in {self.better:.0%} of the resamples."
        return text


def agree(report: Report, label: str) -> Agreement:
    """A label's prediction between floor and ceiling."""
    ways = {
        way: [score for score in report.scores if (score.label, score.way) == (label, way)]
        for way in (MODEL, FLOOR, CEILING)
    }
    values = {way: _mean([score.pixels.pearson for score in own]) for way, own in ways.items()}
    model, floor, of = resample(ways[MODEL], ways[FLOOR], report.settings.split_unit)
    edge = (1 - _LEVEL) / 2
    low, high = np.quantile(model, (edge, 1 - edge)).tolist() if model.size else (math.nan, math.nan)
    better = float(np.mean(model > floor)) if model.size else math.nan
    bright = Amplitude.mean(score.pixels.amplitude for score in ways[MODEL])
    return Agreement(label, values[MODEL], low, high, values[FLOOR], values[CEILING], better, of, bright)


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def resample(
    model: Sequence[Score], floor: Sequence[Score], unit: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], str]:
    """Pearson of prediction and floor in each resample, (resample,) float64; empty of too few."""
    rng, none = np.random.default_rng(0), np.zeros(0)
    if len(model) > 1:
        chosen = rng.integers(len(model), size=(_RESAMPLES, len(model)))
        means = [np.array([s.pixels.pearson for s in own])[chosen].mean(axis=1) for own in (model, floor)]
        return means[0], means[1], f"{len(model)} {unit}s"
    blocks = [own[0].blocks if own else () for own in (model, floor)]
    if len(blocks[0]) < _FEW_BLOCKS:
        return none, none, ""
    chosen = rng.integers(len(blocks[0]), size=(_RESAMPLES, len(blocks[0])))
    pooled = [_pool(own)[chosen].sum(axis=1) for own in blocks]
    found = [np.array([pearson_of_sums(*row) for row in sums.tolist()]) for sums in pooled]
    return found[0], found[1], f"{len(blocks[0])} blocks of one {unit}"


def _pool(blocks: Sequence[PixelScore]) -> NDArray[np.float64]:
    """Sums as `pearson_of_sums` takes them, (block, 6)."""
    return np.array([(s.n, s.a, s.b, s.aa, s.bb, s.ab) for s in blocks], np.float64)


def count(report: Report, label: str) -> CountScore:
    """Objects counted in each field against those of its stain; none for labels without objects."""
    own = [score for score in report.scores if (score.label, score.way) == (label, MODEL)]
    return CountScore(label, tuple(row for score in own for row in score.counted))


def cover_by_brightness(report: Report, label: str) -> NDArray[np.int64]:
    """Pixels, and those within one stated SD, by `scores.LEVELS` of the stain, (2, level)."""
    found = [s.std.levels for s in report.scores if (s.label, s.way) == (label, MODEL) and s.std is not None]
    levels: NDArray[np.int64] = np.sum(found, axis=0)
    return levels


def say(report: Report) -> Iterator[tuple[str, str]]:
    """What, and a sentence or two about it."""
    units, unit = len(report.units), report.settings.split_unit
    if units < _FEW_UNITS:
        yield (
            "too few",
            f"{units} {unit}{'s' * (units != 1)}: how much {unit}s differ can hardly be told from fewer than "
            f"{_FEW_UNITS}, so the intervals are too narrow.",
        )
    for label in report.labels:
        yield "agreement", agree(report, label).sentence
        counted = count(report, label)
        if counted.fields:
            yield "counts", say_counts(counted)
        stds = [s.std for s in report.scores if (s.label, s.way) == (label, MODEL) and s.std is not None]
        if stds:
            total = stds[0]
            for more in stds[1:]:
                total = total + more
            yield "doubt", say_cover(label, total.coverage, total.coverage_foreground)
