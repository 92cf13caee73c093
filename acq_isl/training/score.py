"""How good a network is on held-out fields, and how its SD must be scaled to be one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar

from acq_isl.processing.normalize import contrast_sd
from acq_isl.processing.statistics import (
    Amplitude,
    bright_end,
    pearson_of_sums,
    ratio_of_tops,
    slope_of_sums,
)
from acq_isl.training.data.dataset import Field
from acq_isl.training.data.source_simulated import Pair
from acq_isl.training.network import LiveNetwork

_HALO_TOLERANCE, _MARGIN_TOLERANCE = 2e-6, 1e-2
_RATIOS = np.concatenate([[0.0], np.logspace(-3, 3, 601), [np.inf]])  # of error / SD
_LEVELS = np.concatenate([np.linspace(0, 1, 61), [np.inf]])  # of predicted means
_BRIGHT = 0.3
_BRIGHT_LEVEL = 18  # begins there
_MOST_SLOPE = 30.0
_SLOPES, _SURE = (0.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0), 0.68

Images = NDArray[np.float32]
_Array = NDArray[np.float64]


def predict(network: LiveNetwork, x: NDArray[np.floating]) -> tuple[Images, Images]:
    """Mean, at least 0, and uncalibrated SD, each (label, y, x), of a normalised (z, y, x) stack."""
    with torch.no_grad():
        mean, std, _ = network.predict_with_features(torch.from_numpy(x.astype(np.float32))[None])
    return mean[0].clamp(min=0).numpy(), std[0].numpy()


def measure_halo(network: LiveNetwork, pair: Pair) -> int:
    """Distance from a tile's border beyond which mean and SD equal the untiled ones to 2e-6. Rounded up to
    the size step, and one step more: other fields reach a little further than the one measured."""
    step = network.config.size_step_px
    difference = _tile_difference(network, pair).max(axis=0)
    most = [max(difference[d, d:].max(), difference[d:, d].max()) for d in range(min(difference.shape))]
    return step * (math.ceil(_reach(most, _HALO_TOLERANCE) / step) + 1)


def measure_margin(network: LiveNetwork, pair: Pair) -> int:
    """Distance from a field's border beyond which what lies outside changes the mean by less than 1 % RMS."""
    squares = np.square(_tile_difference(network, pair)[: network.config.labels]).mean(axis=0)
    means = [max(squares[d, d:].mean(), squares[d:, d].mean()) for d in range(min(squares.shape))]
    return _reach(np.sqrt(means), _MARGIN_TOLERANCE)


def _reach(by_distance: Sequence[float] | _Array, tolerance: float) -> int:
    """Distance from which on all values are within the tolerance."""
    beyond = np.flatnonzero(np.asarray(by_distance) > tolerance)
    return int(beyond[-1]) + 1 if beyond.size else 0


def _tile_difference(network: LiveNetwork, pair: Pair) -> Images:
    """How far mean and SD of a tile are from those of the whole field, (2 * label, y, x). Measured, from raw
    counts on, so with the local background: the tile begins at a third of the field, on the network's grid,
    and is predicted alone."""
    step = network.config.size_step_px
    sd = max(contrast_sd(pair.stack, network.config.high_pass_px), 1e-6)
    counts = torch.from_numpy(pair.stack.astype(np.float32))[None]
    start = (counts.shape[2] // 3 // step) * step

    def predict_part(part: torch.Tensor) -> Images:
        with torch.no_grad():
            x = network.normalise(part, torch.tensor([1 / sd], dtype=torch.float32))
        return np.concatenate(predict(network, x[0].numpy()))

    difference: Images = np.abs(
        predict_part(counts[:, :, start:, start:]) - predict_part(counts)[:, start:, start:]
    )
    return difference


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """One label on the held-out units.

    Pearson, MAE (as shares of the truth's range) and coverage, the share of pixels whose truth lies within
    one calibrated SD, are means over the ``n`` units that have this label. One SD is the predicted one times
    scale * (1 + slope * mean): one factor for all would be the background's, far too narrow in what is
    bright. Coverage where the truth is above .3 no factor makes .68 if the network misses what is bright;
    where the prediction is above .3 it can be judged by looking at a prediction. Both are of all units, None
    without such pixels.
    """

    label: str
    n: int
    pearson: float
    mae: float
    coverage: float
    scale: float
    slope: float = 0.0
    bright_coverage: float | None = None
    predicted_coverage: float | None = None


@dataclass(frozen=True, slots=True)
class BrightFit:
    """Scale and slope of an SD, and the share of all pixels, and of those truly bright, that it holds for."""

    scale: float
    slope: float
    covered: float
    bright_covered: float | None


@dataclass(slots=True, eq=False)
class PixelSums:
    """Of one label in one unit; no image is kept. ``levels`` are, by predicted mean: pixels, sum of means,
    sum of (error / SD)^2. ``ratios`` are pixels by dark or bright truth, predicted mean, and error / SD.
    ``tops`` are bright ends of prediction and truth, times pixels."""

    moments: _Array = field(default_factory=lambda: np.zeros(6))
    absolute: float = 0.0
    tops: _Array = field(default_factory=lambda: np.zeros(2))
    levels: _Array = field(default_factory=lambda: np.zeros((3, len(_LEVELS) - 1)))
    ratios: _Array = field(default_factory=lambda: np.zeros((2, len(_LEVELS) - 1, len(_RATIOS) - 1)))

    def add(self, p: _Array, t: _Array, std: _Array) -> None:
        """Pixels of predicted mean, truth and predicted SD."""
        error = np.abs(p - t)
        ratio = error / np.maximum(std, 1e-9)
        self.moments += [p.size, p.sum(), t.sum(), (p * p).sum(), (t * t).sum(), (p * t).sum()]
        self.absolute += float(error.sum())
        self.tops += [p.size * bright_end(p), p.size * bright_end(t)]
        level = np.searchsorted(_LEVELS, p, "right") - 1
        self.levels += [np.bincount(level, weight, len(_LEVELS) - 1) for weight in (None, p, ratio * ratio)]
        at = (t > _BRIGHT, level, np.searchsorted(_RATIOS, ratio, "right") - 1)
        cell = np.ravel_multi_index(at, self.ratios.shape)
        self.ratios += np.bincount(cell, minlength=self.ratios.size).reshape(self.ratios.shape)

    @property
    def pearson(self) -> float:
        """Over all pixels; 0 where it is not defined."""
        found = pearson_of_sums(*self.moments)
        return found if math.isfinite(found) else 0.0

    @property
    def amplitude(self) -> Amplitude:
        """How bright the prediction is beside the truth."""
        n, p, t, pp, _, pt = self.moments.tolist()
        return Amplitude(slope_of_sums(n, p, t, pp, pt), ratio_of_tops(*(self.tops / max(n, 1)).tolist()))


def _mean_levels(levels: _Array) -> _Array:
    middle: _Array = levels[1] / np.maximum(levels[0], 1)
    return middle


def _cover(ratios: _Array, factors: _Array) -> float | None:
    """Share of the pixels of (level, ratio) whose ratio is below their level's factor; None: of no pixel."""
    if not ratios.any():
        return None
    below = [
        np.interp(factor, _RATIOS[1:-1], np.cumsum(row)[:-1])
        for factor, row in zip(factors, ratios, strict=True)
    ]
    return float(sum(below) / ratios.sum())


def calibrate(levels: _Array) -> tuple[float, float]:
    """Scale and slope under which the errors are likeliest, if they are Gaussian. The RMS of error / (SD *
    scale * (1 + slope * mean)) over all pixels is then 1. ``levels`` is (3, k) float64, by predicted mean:
    pixels, sum of means, sum of (error / SD)^2."""
    pixels, mean = levels[0], _mean_levels(levels)

    def surprise(slope: float) -> float:
        scale = _likeliest_scale(levels, slope)
        return float(np.log(scale) + pixels @ np.log1p(slope * mean) / pixels.sum())

    found = minimize_scalar(surprise, bounds=(0.0, _MOST_SLOPE), method="bounded")
    slope = float(found.x) if found.fun < surprise(0.0) - 1e-9 else 0.0
    return _likeliest_scale(levels, slope), slope


def _likeliest_scale(levels: _Array, slope: float) -> float:
    shape = (1 + slope * _mean_levels(levels)) ** 2
    return max(float(np.sqrt(np.sum(levels[2] / shape) / levels[0].sum())), 1e-6)


def calibrate_bright(units: Sequence[PixelSums], *, sloped: bool = True) -> BrightFit:
    """Scale and slope under which one SD holds for `_SURE` of the pixels whose truth is bright.

    Most pixels are background, and what makes all errors likeliest is far too narrow where something is.
    Of the slopes tried, each with the scale that does it, the likeliest; nothing bright: as `calibrate`.
    Not ``sloped``: the slope is 0, since the SD was learned where the truth is bright.
    """
    levels = np.sum([unit.levels for unit in units], axis=0)
    ratios = np.sum([unit.ratios for unit in units], axis=0)
    if not ratios[1].any():
        scale, slope = calibrate(levels) if sloped else (_likeliest_scale(levels, 0.0), 0.0)
        covered = _cover(ratios.sum(axis=0), scale * (1 + slope * _mean_levels(levels)))
        return BrightFit(scale, slope, covered or 0.0, None)
    pixels, mean, squares = levels[0], _mean_levels(levels), levels[2]
    fits = []
    for slope in _SLOPES if sloped else _SLOPES[:1]:
        shape = 1 + slope * mean
        log_scale = brentq(
            lambda log, shape=shape: (_cover(ratios[1], np.exp(log) * shape) or 0) - _SURE, -9, 9
        )
        factors = np.exp(log_scale) * shape
        surprise = float((pixels @ np.log(factors) + (squares / factors**2).sum() / 2) / pixels.sum())
        covered, bright = _cover(ratios.sum(axis=0), factors), _cover(ratios[1], factors)
        fits.append((surprise, BrightFit(float(np.exp(log_scale)), slope, covered or 0.0, bright)))
    return min(fits, key=lambda fit: fit[0])[1]


def bright_coverage(unit: PixelSums, scale: float, slope: float) -> float | None:
    """Share of truly bright pixels that one SD with these factors holds for; None without any."""
    return _cover(unit.ratios[1], scale * (1 + slope * _mean_levels(unit.levels)))


Judged = tuple[LiveNetwork, Field, str]
"""A network in evaluation mode, on the processor; a field it has not seen; and what that belongs to: its
well, itself, or its block."""


def score_network(
    network: LiveNetwork, fields: Sequence[Field], units: Sequence[str], labels: Sequence[str]
) -> tuple[HeldOutScore, ...]:
    """`score_sums` of fields of these units, all predicted by one network."""
    judged = ((network, field, unit) for field, unit in zip(fields, units, strict=True))
    return score_sums(sum_pixels(judged), labels)


def sum_pixels(judged: Iterable[Judged]) -> dict[tuple[int, str], PixelSums]:
    """Predict fields and hold them against their truth, by number of the label and by unit."""
    sums: dict[tuple[int, str], PixelSums] = {}
    for network, item, unit in judged:
        mean, std = predict(network, np.asarray(item.x))
        for at in np.flatnonzero(item.present).tolist():
            known = slice(None) if item.valid is None else item.valid[at]
            p, t, s = (image[known].ravel().astype(np.float64) for image in (mean[at], item.y[at], std[at]))
            sums.setdefault((at, unit), PixelSums()).add(p, t / 255, s)
    return sums


def score_sums(sums: Mapping[tuple[int, str], PixelSums], labels: Sequence[str]) -> tuple[HeldOutScore, ...]:
    """A score per label, with n 0 and scale 1 if no field has it."""
    return tuple(
        _score_label(name, [s for (label, _), s in sums.items() if label == at])
        for at, name in enumerate(labels)
    )


def _score_label(label: str, units: Sequence[PixelSums]) -> HeldOutScore:
    if not units:
        return HeldOutScore(label, 0, 0.0, 0.0, 0.0, 1.0)
    levels = np.sum([unit.levels for unit in units], axis=0)
    scale, slope = calibrate(levels)
    factors = scale * (1 + slope * _mean_levels(levels))
    ratios = np.sum([unit.ratios for unit in units], axis=0)
    own = [scale * (1 + slope * _mean_levels(unit.levels)) for unit in units]
    covered = [_cover(unit.ratios.sum(axis=0), its) or 0.0 for unit, its in zip(units, own, strict=True)]
    return HeldOutScore(
        label,
        len(units),
        float(np.mean([unit.pearson for unit in units])),
        float(np.mean([unit.absolute / unit.moments[0] for unit in units])),
        float(np.mean(covered)),
        scale,
        slope,
        _cover(ratios[1], factors),
        _cover(ratios.sum(axis=0)[_BRIGHT_LEVEL:], factors[_BRIGHT_LEVEL:]),
    )
