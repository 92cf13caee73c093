"""How objects of a predicted label are counted, fitted to fields whose true objects are known."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

from acq_isl.manifest import NETWORKS, Label
from acq_isl.processing.counting import APART_UM, count_on_stain, find_maxima, summarise
from acq_isl.stack import Counting, Float32Image, NetworkLabel, ObjectCounting
from acq_isl.training.data.dataset import Field
from acq_isl.training.score import Judged, predict

_SMOOTH_UM = (0.6, 0.9, 1.2)
_ABOVE = (0.1, 0.15, 0.2, 0.25, 0.3)
_LEAST_FIELDS, _LEAST_UNITS, _LEAST_OBJECTS = 8, 4, 3.0
_GOOD_ENOUGH = 0.5  # correlation below which a count would mislead
_MOST_BIAS = 0.15  # of the true count, on units left out of the fit
_TRUE = "true is what the stain shows"

logger = logging.getLogger(__name__)
_Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CountedField:
    """One field of a label: its true objects, and what its prediction shows.

    ``unit`` is what a field belongs to, such as its culture; ``heights`` are of the maxima, by smoothing.
    """

    unit: str
    true: int
    area_mm2: float
    intensity_um2: float
    heights: tuple[NDArray[np.float32], ...]

    @classmethod
    def of(cls, unit: str, mean: Float32Image, truth: Float32Image, pixel_size_um: float) -> CountedField:
        """From the predicted mean and the truth, (y, x) each, 0 background and 1 the bright end."""
        heights = tuple(find_maxima(mean, pixel_size_um, smooth_um) for smooth_um in _SMOOTH_UM)
        return cls(unit, count_on_stain(truth, pixel_size_um), *summarise(mean, pixel_size_um), heights)


@dataclass(frozen=True, slots=True, eq=False)
class _Detector:
    """Maxima that count, and area, maxima and intensity of each field, (field, 3)."""

    smooth_um: float
    above: float
    rows: _Array


def count_held_out(
    judged: Sequence[Judged], labels: Sequence[Label], pixel_size_um: float
) -> tuple[Counting, ...]:
    """How objects are counted, fitted to fields that their networks have not seen.

    Networks, such as axons, are said to be such; nothing is said of a label whose count cannot be fitted.
    Fewer than eight fields are cut in halves, so that there are enough to fit to.
    """
    networks = {each.name for each in labels if NETWORKS & {each.name.lower(), each.marker.lower()}}
    counted: dict[str, list[CountedField]] = {each.name: [] for each in labels if each.name not in networks}
    parts = 1 if len(judged) >= _LEAST_FIELDS else 2
    for network, field, unit in judged if counted else ():
        means = predict(network, np.asarray(field.x))[0]
        for at, label in enumerate(labels):
            if label.name in networks or not field.present[at] or not _known(field, at):
                continue
            truth = field.y[at].astype(np.float32) / 255
            halves = zip(np.array_split(means[at], parts), np.array_split(truth, parts), strict=True)
            counted[label.name] += [CountedField.of(unit, *half, pixel_size_um) for half in halves]
    what = f"{'halves of ' * (parts == 2)}{len(judged)} held-out fields; {_TRUE}"
    fits = (fit_counts(label, found, what) for label, found in counted.items() if found)
    return (*(fit for fit in fits if fit is not None), *map(NetworkLabel, sorted(networks)))


def _known(field: Field, at: int) -> bool:
    """Whether a label's truth is known everywhere: objects that nobody saw cannot be counted."""
    return field.valid is None or bool(field.valid[at].all())


def fit_counts(label: str, fields: Sequence[CountedField], judged_on: str) -> ObjectCounting | None:
    """The detector and weights that count best on units left out of the fit.

    None, with the reason in the log, where fields or objects are too few, or counts do not follow the truth.
    """
    true = np.array([field.true for field in fields], float)
    units = np.array([field.unit for field in fields])
    kinds = len(set(units.tolist()))
    if len(fields) < _LEAST_FIELDS or kinds < _LEAST_UNITS or not true.std() or true.mean() < _LEAST_OBJECTS:
        found = f"{len(fields)} fields of {kinds} units, {true.sum():.0f} objects"
        logger.warning("counts of %s are not calibrated, so their doubt is unknown: %s", label, found)
        return None
    best = min(_detectors(fields), key=lambda detector: _rms(_left_out(detector.rows, true, units) - true))
    held = _left_out(best.rows, true, units)
    correlation = float(np.corrcoef(held, true)[0, 1]) if held.std() else 0.0
    if correlation < _GOOD_ENOUGH:
        logger.warning(
            "counts of %s are not calibrated: they do not follow the truth (r %.2f)", label, correlation
        )
        return None
    bias = float((held - true).mean() / true.mean())
    if abs(bias) > _MOST_BIAS:
        logger.warning(
            "counts of %s are not calibrated: on other units they are off by %+.0f %%", label, 100 * bias
        )
        return None
    area_mm2 = best.rows[:, 0]
    per_object, per_mm2 = _fit_variance(held, area_mm2, held - true)
    away = np.abs(held - true) / np.sqrt(per_object * held + per_mm2 * area_mm2)
    area, maxima, intensity = _weights(best.rows, true).tolist()
    return ObjectCounting(
        label, best.smooth_um, best.above, APART_UM,
        area, maxima, intensity, per_object, per_mm2, len(fields),
        bias=bias, correlation=correlation,
        within_1_sd=float((away <= 1).mean()), within_2_sd=float((away <= 2).mean()),
        judged_on=judged_on,
    )  # fmt: skip


def _detectors(fields: Sequence[CountedField]) -> Iterator[_Detector]:
    for at, smooth_um in enumerate(_SMOOTH_UM):
        for above in _ABOVE:
            rows = [(f.area_mm2, np.count_nonzero(f.heights[at] > above), f.intensity_um2) for f in fields]
            yield _Detector(smooth_um, above, np.array(rows, float))


def _weights(rows: _Array, true: _Array) -> _Array:
    """Weights of maxima and intensity, at least 0, and of the area, which may be below."""
    sure = 1 / np.sqrt(np.maximum(true, true.mean() / 4))  # more objects, more to be wrong about
    signed = np.column_stack([rows, -rows[:, 0]]) * sure[:, None]
    scale = np.maximum(np.abs(signed).max(axis=0), 1e-12)
    weights = nnls(signed / scale, true * sure)[0] / scale
    found: _Array = weights[:3] - [weights[3], 0, 0]
    return found


def _left_out(rows: _Array, true: _Array, units: NDArray[np.str_]) -> _Array:
    """Counts of each unit by weights fitted to the others."""
    held = np.zeros(len(true))
    for unit in dict.fromkeys(units.tolist()):
        own = units == unit
        held[own] = np.maximum(rows[own] @ _weights(rows[~own], true[~own]), 0)
    return held


def _fit_variance(counts: _Array, area_mm2: _Array, errors: _Array) -> tuple[float, float]:
    """Variance per object and per mm2 under which Gaussian errors are likeliest."""
    parts = np.column_stack([counts, area_mm2])
    start = np.log(np.mean(errors**2) / 2 / np.maximum(parts.mean(axis=0), 1e-9))

    def surprise(logs: _Array) -> float:
        variance = parts @ np.exp(logs)
        return float(np.mean(np.log(variance) + errors**2 / variance))

    per_object, per_mm2 = np.exp(minimize(surprise, start, method="Nelder-Mead").x).tolist()
    return per_object, per_mm2


def _rms(errors: _Array) -> float:
    return float(np.sqrt(np.mean(errors**2)))
