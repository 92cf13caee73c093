"""Numbers from predicted labels, with the uncertainty that the predicted spread implies. Pure.

How sure a number is, one SD: with m the predicted mean and s the stated spread of a pixel, N pixels measured,
and p = Phi((m - above) / s) the probability that a pixel is truly above the threshold,

* area fraction, area, confluency: sqrt(mean(p (1 - p)) / M)
* mean and integrated intensity: sqrt(mean(s^2) / M)
* object count, density: what the model's own calibration found on fields whose objects were known
* share of objects: sqrt(sum(p (1 - p))) / n, p of each of the n objects from its own mean and spread
* change, growth rate: from the doubts of the visits, taken to be unrelated
* all others: unknown, and said to be

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
from acq_isl.rules.units import AREA, FRACTION, INTEGRAL, INTENSITY, LENGTH, OBJECTS, SPREAD, Unit
from acq_isl.stack import Counting, Float32Image, NetworkLabel, ObjectCounting, Prediction

# Patches of this area are taken to err together. Integral of the autocorrelation of the error of a
# simple predictor (log z-variance) on the one real field at hand: 151 (DAPI), 237 (MAP2), 70 (NFH) um^2.
CORRELATION_AREA_UM2 = 150.0
log = logging.getLogger(__name__)


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
        from acq_isl.rules import objects, over_time, similarity, user  # they derive from what is here

        return (
            *(
                AreaFraction,
                Area,
                Confluency,
                ObjectCount,
                objects.Density,
                objects.Share,
                objects.ObjectShape,
            ),
            *(MeanIntensity, IntegratedIntensity, Uncertainty, NetworkLength, objects.BranchPoints),
            *(over_time.Change, over_time.GrowthRate),
            *(similarity.Novelty, similarity.Quality, similarity.FocusOffset, user.PythonFunction),
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that it looks at, all of one model; none if it looks at the prediction as a whole."""
        return (self.label,) if self.label else ()

    @property
    def first_label(self) -> str:
        """The label whose model is asked; empty for the first model."""
        return next(iter(self.labels), self.label)

    @property
    def measured_in(self) -> Unit:
        """Its unit; `unit`, where all of a kind measure in the same."""
        return self.unit

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
        p = probability_above(mean, spread, self.above)
        value = float(np.mean(mean > self.above)) if np.isfinite(mean).all() else np.nan
        return value, float(np.sqrt(np.mean(p * (1 - p)) / _patches(mean.size, prediction)))


class Area(Measurement):
    """Area of the field in which a predicted label is brighter than a threshold."""

    unit = AREA
    kind: Literal["area"] = "area"
    above: float = Field(default=0.5, allow_inf_nan=False)
    """Predicted intensity; 1 is the bright end of the training truth."""

    @property
    def title(self) -> str:
        return f"total area of {self.label} (predicted) above {self.above:g}"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        value, doubt = AreaFraction(label=self.label, above=self.above).measure(prediction)
        area_um2 = inner_area_um2(prediction)
        return value * area_um2, doubt * area_um2


class Confluency(Measurement):
    """Share of the field that is covered by cells: by any of several predicted labels, gaps filled."""

    unit = FRACTION
    kind: Literal["confluency"] = "confluency"
    also: tuple[str, ...] = ()
    """Other labels of the same model that count as cells, such as ``dendrites``."""
    above: float = Field(default=0.2, allow_inf_nan=False)
    """Predicted intensity; 1 is the bright end of the training truth."""
    gaps_um2: float = Field(default=100.0, ge=0, allow_inf_nan=False)
    """Gaps up to this area are covered, too; in square micrometres of specimen."""

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label, *self.also)

    @property
    def title(self) -> str:
        return f"area covered by {', '.join(self.labels)} (predicted) above {self.above:g}"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        from skimage.measure import label

        planes = [inner_planes(prediction, label) for label in self.labels]
        if not all(np.isfinite(mean).all() for mean, _ in planes):
            return np.nan, np.nan
        covered = np.any([mean > self.above for mean, _ in planes], axis=0)
        most_px = int(self.gaps_um2 / prediction.info.pixel_size_um**2)
        gaps = label(~covered, connectivity=1)
        covered |= (np.bincount(gaps.ravel()) <= most_px)[gaps]
        p = np.max([probability_above(mean, spread, self.above) for mean, spread in planes], axis=0)
        return float(np.mean(covered)), float(np.sqrt(np.mean(p * (1 - p)) / _patches(p.size, prediction)))


class ObjectMeasurement(Measurement):
    """What is measured on separate objects of a label."""

    above: float = Field(default=0.5, allow_inf_nan=False)
    """Predicted intensity; 1 is the bright end of the training truth. For segmented objects only."""
    min_area_um2: float = Field(default=20.0, ge=0, allow_inf_nan=False)
    """Smaller objects are debris; in square micrometres of specimen. For segmented objects only."""
    segmenter: Segmenter | None = None
    """What tells objects apart; by default a watershed above the threshold."""

    @property
    def objects_by(self) -> Segmenter:
        return self.segmenter or Watershed(above=self.above, min_area_um2=self.min_area_um2)

    def find(self, prediction: Prediction) -> Mask:
        """Objects of the label, (y, x) int32, numbered from 1; ExperimentError for a network."""
        check_countable(self.label, prediction.counting, self.kind)
        return find_objects(self.objects_by, prediction.label(self.label), prediction.info.pixel_size_um)

    def count(self, prediction: Prediction) -> tuple[float, float]:
        """Number of objects and one SD of it."""
        mean = prediction.label(self.label)
        counting = check_countable(self.label, prediction.counting, self.kind)
        if not np.isfinite(mean).all():
            return np.nan, np.nan
        if isinstance(counting, ObjectCounting) and self.segmenter is None:
            return count_objects(counting, mean, prediction.info.pixel_size_um)
        return float(np.count_nonzero(inside(self.find(prediction), prediction))), np.nan


class ObjectCount(ObjectMeasurement):
    """Number of separate objects, such as nuclei, of a predicted label, in the whole field.

    Counted as the model's calibration says (`acq_isl.processing.counting`), with its doubt. Where the model
    has none, or a segmenter is named, segmented objects are counted, and the doubt is unknown.
    """

    unit = OBJECTS
    kind: Literal["object_count"] = "object_count"

    @property
    def title(self) -> str:
        return f"number of objects in {self.label} (predicted)"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        return self.count(prediction)


def inside(objects: Mask, prediction: Prediction) -> NDArray[np.bool_]:
    """Which objects, by number from 1, have their centroid outside of the unsure margin: none is cut."""
    numbers = np.arange(1, objects.max(initial=0) + 1)
    if not numbers.size:
        return np.zeros(0, bool)
    centres = np.asarray(ndimage.center_of_mass(objects > 0, objects, numbers))
    inner = _inner(prediction)
    low, high = ([getattr(side, end) for side in inner] for end in ("start", "stop"))
    return np.asarray(((centres >= low) & (centres < high)).all(axis=1))


class LineMeasurement(Measurement):
    """What is measured on the middle lines of a label that is a network, such as axons."""

    above: float = Field(default=0.2, allow_inf_nan=False)
    """Predicted intensity; 1 is the bright end of the training truth."""

    def middle_lines(self, prediction: Prediction) -> NDArray[np.bool_] | None:
        """Pixels of the middle lines, (y, x); None if something in the label is no number."""
        from skimage.morphology import skeletonize

        mean, _ = inner_planes(prediction, self.label)
        return np.asarray(skeletonize(mean > self.above)) if np.isfinite(mean).all() else None


class NetworkLength(LineMeasurement):
    """Length of the middle lines of a label that is a network, such as axons, brighter than a threshold."""

    unit = LENGTH
    kind: Literal["length"] = "length"

    @property
    def title(self) -> str:
        return f"length of {self.label} (predicted) above {self.above:g}"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        lines = self.middle_lines(prediction)
        if lines is None:
            return np.nan, np.nan
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


class IntegratedIntensity(Measurement):
    """Predicted intensity of a label summed over the field, times the area of a pixel."""

    unit = INTEGRAL
    kind: Literal["integrated_intensity"] = "integrated_intensity"

    @property
    def title(self) -> str:
        return f"integrated intensity of {self.label} (predicted)"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        value, doubt = MeanIntensity(label=self.label).measure(prediction)
        area_um2 = inner_area_um2(prediction)
        return value * area_um2, doubt * area_um2


class Uncertainty(Measurement):
    """How unsure the model is of a label: the mean of one SD of each pixel."""

    unit = SPREAD
    kind: Literal["uncertainty"] = "uncertainty"

    @property
    def title(self) -> str:
        return f"uncertainty (mean SD) of {self.label} (predicted)"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        return float(inner_planes(prediction, self.label)[1].mean(dtype=np.float64)), np.nan


def check_countable(label: str, counting: Iterable[Counting], kind: str) -> Counting | None:
    """How objects of a label are counted, if that is known; ExperimentError if it is a network."""
    found = next((each for each in counting if each.label == label), None)
    if isinstance(found, NetworkLabel):
        raise ExperimentError(
            f"{label} (predicted) are a network, which has no objects to be counted",
            wanted="length, area_fraction or mean_intensity",
            got=kind,
            fix=f"measurement: {{kind: length, label: {label}}}",
        )
    return found


def measure(prediction: Prediction, measurement: Measurement) -> Measured:
    """Measure one field; ExperimentError without a label that is looked at, or if a plug-in fails."""
    for label in measurement.labels:
        if label not in prediction.labels:
            raise ExperimentError(
                f"the model does not predict {label!r}",
                wanted=f"one of {', '.join(prediction.labels)}",
                got=label,
                fix="correct the label in the experiment, or choose a model that predicts it",
            )
    try:
        value, doubt = measurement.measure(prediction)
    except AcqIslError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ExperimentError(f"{measurement.title} was not measured", got=why) from error
    return write_down(measurement, value, doubt)


def write_down(measurement: Measurement, value: float, doubt: float) -> Measured:
    """A value and its doubt, one SD, as they are shown; a doubt that is not known is said to be unknown."""
    unit = measurement.measured_in
    text = unit.write(value, doubt)
    if np.isfinite(value) and not np.isfinite(doubt):
        text += ", doubt unknown"
    return Measured(measurement.title, value, unit.name, doubt, text)


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


def inner_area_um2(prediction: Prediction) -> float:
    """Area of the specimen that `inner_planes` shows, in square micrometres."""
    rows, columns = (side.stop - side.start for side in _inner(prediction))
    return float(rows * columns * prediction.info.pixel_size_um**2)


def _inner(prediction: Prediction) -> tuple[slice, slice]:
    height, width = prediction.info.shape
    rows, columns = (min(prediction.border_px, side // 4) for side in (height, width))
    return slice(rows, height - rows), slice(columns, width - columns)


def probability_above(mean: NDArray[Any], spread: NDArray[Any], above: float) -> NDArray[np.float64]:
    """Phi((mean - above) / spread), a step where the spread is 0."""
    away = np.asarray(mean, np.float64) - above
    certain = np.where(away > 0, np.inf, -np.inf)
    return np.asarray(special.ndtr(np.divide(away, spread, out=certain, where=np.asarray(spread) > 0)))


def _patches(pixels: int, prediction: Prediction) -> float:
    return max(pixels * prediction.info.pixel_size_um**2 / CORRELATION_AREA_UM2, 1.0)
