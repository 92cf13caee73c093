"""How good a network is on held-out fields, and how wide its spread must be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from acq_isl.processing.normalize import contrast_sd
from acq_isl.training.data.dataset import Field
from acq_isl.training.data.source_simulated import Pair
from acq_isl.training.network import LiveNetwork

_HALO_TOLERANCE, _MARGIN_TOLERANCE = 2e-6, 1e-2

Images = NDArray[np.float32]


def predict(network: LiveNetwork, x: NDArray[np.floating]) -> tuple[Images, Images]:
    """Mean, at least 0, and uncalibrated spread, each (label, y, x), of a normalised (z, y, x) stack."""
    with torch.no_grad():
        mean, spread, _ = network.with_bottom(torch.from_numpy(x.astype(np.float32))[None])
    return mean[0].clamp(min=0).numpy(), spread[0].numpy()


def measure_halo(network: LiveNetwork, pair: Pair) -> int:
    """Distance from a tile's border beyond which mean and spread equal the untiled ones to 2e-6.

    Rounded up to the size step, and one step more: other fields reach a little further than the one measured.
    """
    step = network.config.size_step_px
    difference = _cut_off(network, pair).max(axis=0)
    sides = range(min(difference.shape))
    at_distance = [max(difference[d, d:].max(), difference[d:, d].max()) for d in sides]
    wrong = np.flatnonzero(np.array(at_distance) > _HALO_TOLERANCE)
    return step * (math.ceil((int(wrong[-1]) + 1 if wrong.size else 0) / step) + 1)


def measure_margin(network: LiveNetwork, pair: Pair) -> int:
    """Distance from a field's border beyond which what lies outside changes the mean by less than 1 % RMS."""
    squares = np.square(_cut_off(network, pair)[: network.config.labels]).mean(axis=0)
    sides = range(min(squares.shape))
    at_distance = [max(squares[d, d:].mean(), squares[d:, d].mean()) for d in sides]
    wrong = np.flatnonzero(np.sqrt(at_distance) > _MARGIN_TOLERANCE)
    return int(wrong[-1]) + 1 if wrong.size else 0


def _cut_off(network: LiveNetwork, pair: Pair) -> Images:
    """How far mean and spread of a tile are from those of the whole field, (2 * label, y, x).

    Measured, from raw counts on: the tile begins at a third of the field, on the network's lattice, and is
    predicted alone. Includes the local background.
    """
    step = network.config.size_step_px
    sd = max(contrast_sd(pair.stack, network.config.high_pass_px), 1e-6)
    counts = torch.from_numpy(pair.stack.astype(np.float32))[None]
    start = (counts.shape[2] // 3 // step) * step

    def of(part: torch.Tensor) -> Images:
        with torch.no_grad():
            x = network.normalise(part, torch.tensor([1 / sd], dtype=torch.float32))
        return np.concatenate(predict(network, x[0].numpy()))

    apart: Images = np.abs(of(counts[:, :, start:, start:]) - of(counts)[:, start:, start:])
    return apart


_RATIOS = np.concatenate([[0.0], np.logspace(-3, 3, 601), [np.inf]])
_LEVELS = np.concatenate([np.linspace(0, 1, 61), [np.inf]])  # of predicted means
_BRIGHT = 0.3
_BRIGHT_LEVEL = 18  # begins there
_MOST_SLOPE = 30.0
_Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """One label on the held-out units.

    Parameters
    ----------
    label : str
    n : int
        Units that have this label.
    pearson, mae : float
        Mean over the units, each over all its pixels; intensities as shares of the truth's range.
    coverage : float
        Share of pixels whose truth lies within one calibrated spread, mean over the units.
    bright_coverage : float or None
        The same of the pixels whose truth is above .3, all units together; None if there are none. Where the
        network misses what is bright it cannot know it: no factor makes this .68.
    predicted_coverage : float or None
        The same of the pixels that are predicted above .3: what can be judged by looking at a prediction.
    scale, slope : float
        The spread times scale * (1 + slope * mean) is one SD: RMS of error / spread 1 over all pixels, and
        the slope that makes the truth likeliest. One factor for all would be the background's, far too
        narrow in what is bright, where the few pixels hardly count.
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


@dataclass(slots=True, eq=False)
class _Sums:
    """Of one label in one unit; no image is kept."""

    moments: _Array = field(default_factory=lambda: np.zeros(7))
    levels: _Array = field(default_factory=lambda: np.zeros((3, len(_LEVELS) - 1)))
    """By predicted mean: pixels, sum of means, sum of (error / spread)^2."""
    ratios: _Array = field(default_factory=lambda: np.zeros((2, len(_LEVELS) - 1, len(_RATIOS) - 1)))
    """Pixels by dark or bright truth, predicted mean, error / spread."""

    def add(self, p: _Array, t: _Array, spread: _Array) -> None:
        ratio = np.abs(p - t) / np.maximum(spread, 1e-9)
        sums = (p.size, p.sum(), t.sum(), (p * p).sum(), (t * t).sum(), (p * t).sum(),
                np.abs(p - t).sum())  # fmt: skip
        self.moments += np.array(sums)
        level = np.searchsorted(_LEVELS, p, "right") - 1
        weights = (None, p, ratio * ratio)
        self.levels += [np.bincount(level, weight, len(_LEVELS) - 1) for weight in weights]
        at = (t > _BRIGHT, level, np.searchsorted(_RATIOS, ratio, "right") - 1)
        cell = np.ravel_multi_index(at, self.ratios.shape)
        self.ratios += np.bincount(cell, minlength=self.ratios.size).reshape(self.ratios.shape)

    @property
    def pearson(self) -> float:
        n, p, t, pp, tt, pt = self.moments[:6]
        power = (pp - p * p / n) * (tt - t * t / n)
        return float((pt - p * t / n) / np.sqrt(power)) if power > 0 else 0.0

    @property
    def mae(self) -> float:
        return float(self.moments[6] / self.moments[0])

    def within(self, scale: float, slope: float) -> float:
        """Share of pixels with an error below a calibrated spread."""
        return _within(self.ratios.sum(axis=0), scale * (1 + slope * _means(self.levels))) or 0.0


def _means(levels: _Array) -> _Array:
    middle: _Array = levels[1] / np.maximum(levels[0], 1)
    return middle


def _within(ratios: _Array, factors: _Array) -> float | None:
    """Share of the pixels of (level, ratio) whose ratio is below their level's factor; None: of no pixel."""
    if not ratios.any():
        return None
    below = [
        np.interp(factor, _RATIOS[1:-1], np.cumsum(row)[:-1])
        for factor, row in zip(factors, ratios, strict=True)
    ]
    return float(sum(below) / ratios.sum())


def calibration(levels: _Array) -> tuple[float, float]:
    """Scale and slope under which the errors are likeliest, if they are Gaussian.

    Parameters
    ----------
    levels : (3, k) float64
        By predicted mean: pixels, sum of means, sum of (error / spread)^2.

    Returns
    -------
    scale, slope : float
        The RMS of error / (spread * scale * (1 + slope * mean)) over all pixels is 1.
    """
    pixels, mean, squares = levels[0], _means(levels), levels[2]

    def scale(slope: float) -> float:
        return max(float(np.sqrt(np.sum(squares / (1 + slope * mean) ** 2) / pixels.sum())), 1e-6)

    def surprise(slope: float) -> float:
        return float(np.log(scale(slope)) + pixels @ np.log1p(slope * mean) / pixels.sum())

    found = minimize_scalar(surprise, bounds=(0.0, _MOST_SLOPE), method="bounded")
    slope = float(found.x) if found.fun < surprise(0.0) - 1e-9 else 0.0
    return scale(slope), slope


def score(
    network: LiveNetwork, fields: Sequence[Field], units: Sequence[str], labels: Sequence[str]
) -> tuple[Score, ...]:
    """Predict fields and hold them against their truth.

    Parameters
    ----------
    network : LiveNetwork
        In evaluation mode, on the processor.
    fields : sequence of Field
    units : sequence of str
        Of each field, what it belongs to: its well, itself, or its block.
    labels : sequence of str

    Returns
    -------
    tuple of Score
        One per label, also for those that no field has: n is 0 then, and the scale 1.
    """
    sums: dict[tuple[int, str], _Sums] = {}
    for one, unit in zip(fields, units, strict=True):
        mean, spread = predict(network, np.asarray(one.x))
        for at, present in enumerate(one.present):
            if not present:
                continue
            known = slice(None) if one.valid is None else one.valid[at]
            parts = (image[known].ravel().astype(np.float64) for image in (mean[at], one.y[at], spread[at]))
            p, t, s = parts
            sums.setdefault((at, unit), _Sums()).add(p, t / 255, s)
    return tuple(
        _of(name, [s for (label, _), s in sums.items() if label == at]) for at, name in enumerate(labels)
    )


def _of(label: str, units: list[_Sums]) -> Score:
    if not units:
        return Score(label, 0, 0.0, 0.0, 0.0, 1.0)
    levels = np.sum([one.levels for one in units], axis=0)
    scale, slope = calibration(levels)
    factors = scale * (1 + slope * _means(levels))
    ratios = np.sum([one.ratios for one in units], axis=0)

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return Score(
        label,
        len(units),
        mean([one.pearson for one in units]),
        mean([one.mae for one in units]),
        mean([one.within(scale, slope) for one in units]),
        scale,
        slope,
        _within(ratios[1], factors),
        _within(ratios.sum(axis=0)[_BRIGHT_LEVEL:], factors[_BRIGHT_LEVEL:]),
    )
