"""Numbers from predicted labels, with the uncertainty that the predicted spread implies. Pure.

How sure a number is, one SD: with m the predicted mean and s the stated spread of a pixel, N pixels measured,
and p = Phi((m - above) / s) the probability that a pixel is truly above the threshold,

* area fraction: sqrt(mean(p (1 - p)) / M)
* mean intensity: sqrt(mean(s^2) / M)
* object count: what the model's own calibration found on fields whose objects were known; unknown without
* length: unknown

M = max(N pixel area / `CORRELATION_AREA_UM2`, 1) is the number of patches that err independently: within a
patch errors are taken to be the same, between patches unrelated. Nobody checked that on your cells. An error
common to the whole field (focus, another cell type) and a wrong spread are not in it. For display, never a
gate.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage, special

from acq_isl.errors import AcqIslError, ExperimentError
from acq_isl.processing.counting import count_objects
from acq_isl.processing.segmentation import Mask
from acq_isl.rules.plugins import PluginPoint
from acq_isl.rules.segmenters import Segmenter, Watershed, find_objects
from acq_isl.stack import Counting, Float32Image, NetworkLabel, ObjectCounting, Outcome, Prediction, StackKey

# Patches of this area are taken to err together. Integral of the autocorrelation of the error of a
# simple predictor (log z-variance) on the one real field at hand: 151 (DAPI), 237 (MAP2), 70 (NFH) um^2.
CORRELATION_AREA_UM2 = 150.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unit:
    """Unit of a measurement, and how numbers in it are written: times ``scale``, with ``text`` behind."""

    name: str
    text: str = ""
    scale: float = 1.0
    digits: int = 3
    low: float = -np.inf
    """Least and largest value that can be measured, where that is known."""
    high: float = np.inf

    def write(self, value: float, uncertainty: float = np.nan) -> str:
        """A number as a person writes it, such as ``12.3 ± 0.4 % of the area`` or ``41 objects``."""
        if not np.isfinite(value):
            return "no number"
        number, text = f"{value * self.scale:.{self.digits}f}", self.text or self.name
        if np.isfinite(uncertainty):
            number += f" ± {uncertainty * self.scale:.{max(self.digits, 1)}f}"
        return f"{number} {text[:-1] if text == 'objects' and number == '1' else text}"


FRACTION = Unit("fraction", "% of the area", 100.0, 1, low=0.0, high=1.0)
OBJECTS = Unit("objects", digits=0, low=0.0)
INTENSITY = Unit("relative intensity", low=0.0, high=1.0)
LENGTH = Unit("um", "mm", 1e-3, 2, low=0.0)


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement of a predicted label on one field."""

    name: str
    """What was measured, for people."""
    value: float
    unit: str
    """Name of the unit, such as ``fraction``."""
    doubt: float
    """One SD of ``value`` that the predicted spread implies, same unit. Display only."""
    text: str = ""
    """All of it for people, such as ``12.3 ± 0.4 % of the area``."""


class Measurement(PluginPoint):
    """Plug-in point: a number from one predicted label of one field.

    A kind of your own derives from this class and is an entry point in ``acq_isl.measurements``.
    """

    plugin_group: ClassVar[str] = "acq_isl.measurements"
    unit: ClassVar[Unit]
    """In which it measures."""

    kind: str
    label: str
    """Bare label name, such as ``nuclei``."""

    @classmethod
    def built_in(cls) -> tuple[type[Measurement], ...]:
        return AreaFraction, ObjectCount, MeanIntensity, NetworkLength

    @property
    @abstractmethod
    def title(self) -> str:
        """What is measured, for people, such as ``number of objects in nuclei (predicted)``."""

    @abstractmethod
    def measure(self, prediction: Prediction) -> tuple[float, float]:
        """Value and uncertainty, one SD, in the unit; NaN for what is not known.

        The prediction has the label. `inner_planes` gives its pixels without the unsure margin.
        """


class AreaFraction(Measurement):
    """Share of the field in which a predicted label is brighter than a threshold."""

    unit = FRACTION
    kind: Literal["area_fraction"] = "area_fraction"
    above: float = Field(default=0.5, allow_inf_nan=False)
    """Predicted intensity; 1 is the bright end of the training truth."""

    @property
    def title(self) -> str:
        return f"area of {self.label} (predicted) above {self.above:g}"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        mean, spread = inner_planes(prediction, self.label)
        p = _probability(mean, spread, self.above)
        value = float(np.mean(mean > self.above)) if np.isfinite(mean).all() else np.nan
        return value, float(np.sqrt(np.mean(p * (1 - p)) / _patches(mean.size, prediction)))


class ObjectCount(Measurement):
    """Number of separate objects, such as nuclei, of a predicted label, in the whole field.

    Counted as the model's calibration says (`acq_isl.processing.counting`), with its doubt. Where the model
    has none, or a segmenter is named, segmented objects are counted, and the doubt is unknown.
    """

    unit = OBJECTS
    kind: Literal["object_count"] = "object_count"
    above: float = Field(default=0.5, allow_inf_nan=False)
    """Predicted intensity; 1 is the bright end of the training truth. For segmented objects only."""
    min_area_um2: float = Field(default=20.0, ge=0, allow_inf_nan=False)
    """Smaller objects are debris; in square micrometres of specimen. For segmented objects only."""
    segmenter: Segmenter | None = None
    """What tells objects apart; by default a watershed above the threshold."""

    @property
    def title(self) -> str:
        return f"number of objects in {self.label} (predicted)"

    @property
    def objects_by(self) -> Segmenter:
        return self.segmenter or Watershed(above=self.above, min_area_um2=self.min_area_um2)

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        mean = prediction.label(self.label)
        counting = check_countable(self.label, prediction.counting)
        if not np.isfinite(mean).all():
            return np.nan, np.nan
        if isinstance(counting, ObjectCounting) and self.segmenter is None:
            return count_objects(counting, mean, prediction.info.pixel_size_um)
        return _count_inside(
            find_objects(self.objects_by, mean, prediction.info.pixel_size_um), prediction
        ), np.nan


def _count_inside(objects: Mask, prediction: Prediction) -> float:
    """An object counts where its centroid lies, so none is cut by the unsure margin."""
    numbers = np.arange(1, objects.max(initial=0) + 1)
    centres = ndimage.center_of_mass(objects > 0, objects, numbers)
    inner = _inner(prediction)
    return float(
        sum(all(side.start <= at < side.stop for side, at in zip(inner, yx, strict=True)) for yx in centres)
    )


class NetworkLength(Measurement):
    """Length of the middle lines of a label that is a network, such as axons, brighter than a threshold."""

    unit = LENGTH
    kind: Literal["length"] = "length"
    above: float = Field(default=0.2, allow_inf_nan=False)
    """Predicted intensity; 1 is the bright end of the training truth."""

    @property
    def title(self) -> str:
        return f"length of {self.label} (predicted) above {self.above:g}"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        from skimage.morphology import skeletonize

        mean, _ = inner_planes(prediction, self.label)
        if not np.isfinite(mean).all():
            return np.nan, np.nan
        lines = skeletonize(mean > self.above)
        steps = ((lines[:, 1:] & lines[:, :-1]), (lines[1:] & lines[:-1]))
        slanted = ((lines[1:, 1:] & lines[:-1, :-1]), (lines[1:, :-1] & lines[:-1, 1:]))
        pixels = sum(map(np.count_nonzero, steps)) + np.sqrt(2) * sum(map(np.count_nonzero, slanted))
        return float(pixels) * prediction.info.pixel_size_um, np.nan


class MeanIntensity(Measurement):
    """Mean predicted intensity of a label over the field."""

    unit = INTENSITY
    kind: Literal["mean_intensity"] = "mean_intensity"

    @property
    def title(self) -> str:
        return f"mean intensity of {self.label} (predicted)"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        mean, spread = inner_planes(prediction, self.label)
        variance = np.mean(np.square(spread, dtype=np.float64)) / _patches(mean.size, prediction)
        return float(mean.mean(dtype=np.float64)), float(np.sqrt(variance))


def check_countable(label: str, counting: Iterable[Counting]) -> Counting | None:
    """How objects of a label are counted, if that is known; ExperimentError if it is a network."""
    found = next((each for each in counting if each.label == label), None)
    if isinstance(found, NetworkLabel):
        raise ExperimentError(
            f"{label} (predicted) are a network, which has no objects to be counted",
            wanted="length, area_fraction or mean_intensity",
            got="object_count",
            fix=f"measurement: {{kind: length, label: {label}}}",
        )
    return found


def measure(prediction: Prediction, measurement: Measurement) -> Measured:
    """Measure one predicted label of one field; ExperimentError without the label, or if a plug-in fails."""
    if measurement.label not in prediction.labels:
        raise ExperimentError(
            f"the model does not predict {measurement.label!r}",
            wanted=f"one of {', '.join(prediction.labels)}",
            got=measurement.label,
            fix="correct the label in the experiment, or choose a model that predicts it",
        )
    try:
        value, uncertainty = measurement.measure(prediction)
    except AcqIslError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ExperimentError(f"{measurement.title} was not measured", got=why) from error
    unit = measurement.unit
    text = unit.write(value, uncertainty)
    if (
        isinstance(measurement, ObjectCount | NetworkLength)
        and np.isfinite(value)
        and not np.isfinite(uncertainty)
    ):
        text += ", doubt unknown"
    return Measured(measurement.title, value, unit.name, uncertainty, text)


def readable(measured: Measured) -> str:
    """A measurement as a person writes it, such as ``12.3 ± 0.4 % of the area``."""
    units = {unit.name: unit for unit in (FRACTION, OBJECTS, INTENSITY, LENGTH)}
    unit = units.get(measured.unit, Unit(measured.unit))
    return measured.text or unit.write(measured.value, measured.doubt)


def inner_planes(prediction: Prediction, label: str) -> tuple[Float32Image, Float32Image]:
    """Mean and spread of a label, (y, x) float32 each, without the margin of ``border_px``.

    In the margin the network saw beyond the image. At most a quarter of the field is left out on each side.
    """
    index, inner = prediction.labels.index(label), _inner(prediction)
    return prediction.mean[index][inner], prediction.spread[index][inner]


def _inner(prediction: Prediction) -> tuple[slice, slice]:
    height, width = prediction.info.shape
    rows, columns = (min(prediction.border_px, side // 4) for side in (height, width))
    return slice(rows, height - rows), slice(columns, width - columns)


def _probability(mean: NDArray[Any], spread: NDArray[Any], above: float) -> NDArray[np.float64]:
    """Phi((mean - above) / spread), a step where the spread is 0."""
    away = np.asarray(mean, np.float64) - above
    certain = np.where(away > 0, np.inf, -np.inf)
    return np.asarray(special.ndtr(np.divide(away, spread, out=certain, where=np.asarray(spread) > 0)))


def _patches(pixels: int, prediction: Prediction) -> float:
    return max(pixels * prediction.info.pixel_size_um**2 / CORRELATION_AREA_UM2, 1.0)


class MeasurementCache:
    """Measurements of a run by field, each made once; owned by the session."""

    def __init__(self) -> None:
        self._found: dict[tuple[StackKey, Measurement], Measured] = {}
        self._problems: dict[str, None] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Labels that rules look at and no prediction had, and measurements that failed."""
        return tuple(self._problems)

    def measure(self, outcome: Outcome, measurement: Measurement) -> Measured | None:
        """What is measured on an outcome; None without a prediction, or without the label in it.

        Of a `Prediction` it is measured once: later calls may come with reduced images.
        """
        if not isinstance(outcome, Prediction):
            return None
        place = (outcome.info.key, measurement)
        if place not in self._found:
            label = measurement.label
            if label not in outcome.labels:
                # Only a server that was not there at the start can surprise a run with its labels.
                self._problems[f"the model does not predict {label!r}: no rule can look at it"] = None
                return None
            try:
                self._found[place] = measure(outcome, measurement)
            except AcqIslError as error:
                log.warning("%s", error, exc_info=True)
                self._problems[str(error)] = None
                self._found[place] = Measured(measurement.title, np.nan, measurement.unit.name, np.nan)
        return self._found[place]
