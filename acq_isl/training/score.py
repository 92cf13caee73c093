"""How good a network is on held-out fields, and how wide its spread must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from acq_isl.training.assess import predict
from acq_isl.training.dataset import Field
from acq_isl.training.network import LiveNetwork

_RATIOS = np.concatenate([[0.0], np.logspace(-3, 3, 1201), [np.inf]])


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
    scale : float
        What makes the RMS of error / spread 1 over all pixels.
    """

    label: str
    n: int
    pearson: float
    mae: float
    coverage: float
    scale: float


@dataclass(slots=True, eq=False)
class _Sums:
    """Of one label in one unit; no image is kept."""

    moments: NDArray[np.float64] = field(default_factory=lambda: np.zeros(8))
    ratios: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_RATIOS) - 1))

    def add(self, p: NDArray[np.float64], t: NDArray[np.float64], spread: NDArray[np.float64]) -> None:
        ratio = np.abs(p - t) / np.maximum(spread, 1e-9)
        sums = (p.size, p.sum(), t.sum(), (p * p).sum(), (t * t).sum(), (p * t).sum(),
                np.abs(p - t).sum(), (ratio * ratio).sum())  # fmt: skip
        self.moments += np.array(sums)
        self.ratios += np.histogram(ratio, _RATIOS)[0]

    @property
    def pearson(self) -> float:
        n, p, t, pp, tt, pt = self.moments[:6]
        power = (pp - p * p / n) * (tt - t * t / n)
        return float((pt - p * t / n) / np.sqrt(power)) if power > 0 else 0.0

    @property
    def mae(self) -> float:
        return float(self.moments[6] / self.moments[0])

    def within(self, scale: float) -> float:
        """Share of pixels with an error below ``scale`` spreads."""
        return float(np.interp(scale, _RATIOS[1:-1], np.cumsum(self.ratios)[:-1]) / self.ratios.sum())


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
    pixels, squares = (sum(one.moments[at] for one in units) for at in (0, 7))
    scale = float(np.sqrt(squares / pixels))

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return Score(
        label,
        len(units),
        mean([one.pearson for one in units]),
        mean([one.mae for one in units]),
        mean([one.within(scale) for one in units]),
        max(scale, 1e-6),
    )
