"""Numbers from predicted labels, with the doubt they imply; and scores against a measurement. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage, special

from acq_isl.base import StrictModel
from acq_isl.errors import ExperimentError
from acq_isl.processing.segmentation import segment, smooth, spots
from acq_isl.record import Measured
from acq_isl.stack import Float32Image, Outcome, Prediction, StackKey

# Patches of this area are taken to err together. Integral of the autocorrelation of the error of a
# simple predictor (log z-variance) on the one real field at hand: 151 (DAPI), 237 (MAP2), 70 (NFH) um^2.
CORRELATION_AREA_UM2 = 150.0


class AreaFraction(StrictModel):
    """Share of the field in which a predicted label is brighter than a threshold."""

    kind: Literal["area_fraction"] = "area_fraction"
    label: str
    """Bare label name, such as ``nuclei``."""
    above: float = Field(default=0.5, allow_inf_nan=False)
    """Predicted intensity; 1 is the bright end of the training truth."""


class ObjectCount(StrictModel):
    """Number of separate objects, such as nuclei, of a predicted label."""

    kind: Literal["object_count"] = "object_count"
    label: str
    above: float = Field(default=0.5, allow_inf_nan=False)
    """Predicted intensity; 1 is the bright end of the training truth."""
    min_area_um2: float = Field(default=20.0, ge=0, allow_inf_nan=False)
    """Smaller objects are debris; in square micrometres of specimen."""


class MeanIntensity(StrictModel):
    """Mean predicted intensity of a label over the field."""

    kind: Literal["mean_intensity"] = "mean_intensity"
    label: str


Measurement = Annotated[AreaFraction | ObjectCount | MeanIntensity, Field(discriminator="kind")]


def measure(prediction: Prediction, measurement: Measurement) -> Measured:
    """Measure one predicted label of one field.

    The margin of ``border_px``, where the network saw beyond the image, is left out, at most a quarter
    of the field on each side; an object counts where its centroid lies, so none is cut.

    Doubt, one SD, with m the predicted mean and s the stated spread of a pixel, N pixels measured, and
    p = Phi((m - above) / s) the probability that a pixel is truly above the threshold:

    * area fraction: sqrt(mean(p (1 - p)) / M)
    * mean intensity: sqrt(mean(s^2) / M)
    * object count: sqrt(sum over bright spots of p (1 - p)), p at the brightest pixel of each spot,
      found or just missed (variance of a Poisson binomial)

    M = max(N pixel area / `CORRELATION_AREA_UM2`, 1) is the number of patches that err independently:
    within a patch errors are taken to be the same, between patches unrelated, and different objects to
    err independently. Nobody checked that on your cells. An error common to the whole field (focus, another
    cell type), a wrong spread, and objects merged or split are not in it. For display, never a gate.

    Raises
    ------
    ExperimentError
        The prediction has no such label.
    """
    match measurement:
        case AreaFraction():
            return _area_fraction(prediction, measurement)
        case ObjectCount():
            return _object_count(prediction, measurement)
        case MeanIntensity():
            return _mean_intensity(prediction, measurement)


def title(measurement: Measurement) -> str:
    """What is measured, for people, such as ``number of objects in nuclei (predicted)``."""
    match measurement:
        case AreaFraction(label=label, above=above):
            return f"area of {label} (predicted) above {above:g}"
        case ObjectCount(label=label):
            return f"number of objects in {label} (predicted)"
        case MeanIntensity(label=label):
            return f"mean intensity of {label} (predicted)"


def readable(measured: Measured, *, doubt: bool = True) -> str:
    """A measurement as a person writes it, such as ``12.3 ± 0.4 % of the area`` or ``41 ± 3 objects``."""
    scale, digits, unit = {"fraction": (100.0, 1, "% of the area"), "objects": (1.0, 0, "objects")}.get(
        measured.unit, (1.0, 3, measured.unit)
    )
    if not np.isfinite(measured.value):
        return "no number"
    shown = f"{measured.value * scale:.{digits}f}"
    if doubt and np.isfinite(measured.doubt):
        shown += f" ± {measured.doubt * scale:.{max(digits, 1)}f}"
    return f"{shown} {unit[:-1] if unit == 'objects' and shown == '1' else unit}"


def _planes(prediction: Prediction, label: str) -> tuple[Float32Image, Float32Image]:
    if label not in prediction.labels:
        raise ExperimentError(
            f"the model does not predict {label!r}",
            wanted=f"one of {', '.join(prediction.labels)}",
            got=label,
            fix="correct the label in the experiment, or choose a model that predicts it",
        )
    index = prediction.labels.index(label)
    return prediction.mean[index], prediction.spread[index]


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


def _area_fraction(prediction: Prediction, wanted: AreaFraction) -> Measured:
    mean, spread = (plane[_inner(prediction)] for plane in _planes(prediction, wanted.label))
    p = _probability(mean, spread, wanted.above)
    doubt = np.sqrt(np.mean(p * (1 - p)) / _patches(mean.size, prediction))
    value = float(np.mean(mean > wanted.above)) if np.isfinite(mean).all() else float("nan")
    return Measured(title(wanted), value, "fraction", float(doubt))


def _mean_intensity(prediction: Prediction, wanted: MeanIntensity) -> Measured:
    mean, spread = (plane[_inner(prediction)] for plane in _planes(prediction, wanted.label))
    doubt = np.sqrt(np.mean(np.square(spread, dtype=np.float64)) / _patches(mean.size, prediction))
    return Measured(title(wanted), float(mean.mean(dtype=np.float64)), "relative intensity", float(doubt))


def _object_count(prediction: Prediction, wanted: ObjectCount) -> Measured:
    mean, spread = _planes(prediction, wanted.label)
    if not np.isfinite(mean).all():
        return Measured(title(wanted), float("nan"), "objects", float("nan"))
    pixel = prediction.info.pixel_size_um
    inner = _inner(prediction)
    objects = segment(mean, wanted.above, wanted.min_area_um2, pixel)
    centres = ndimage.center_of_mass(objects > 0, objects, np.arange(1, objects.max(initial=0) + 1))
    inside = [inner[0].start <= y < inner[0].stop and inner[1].start <= x < inner[1].stop for y, x in centres]
    smoothed = smooth(mean, pixel)
    radius = max(int(np.sqrt(wanted.min_area_um2 / np.pi) / pixel), 1)
    bright = tuple(spots(smoothed[inner], radius).T)
    p = _probability(smoothed[inner][bright], spread[inner][bright], wanted.above)
    return Measured(title(wanted), float(sum(inside)), "objects", float(np.sqrt(np.sum(p * (1 - p)))))


class Readings:
    """Measurements of a run by field; owned by the session."""

    def __init__(self) -> None:
        self._found: dict[tuple[StackKey, Measurement], Measured] = {}
        self._strange: set[str] = set()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Labels that rules look at and no prediction had."""
        return tuple(f"the model does not predict {one!r}: no rule can look at it" for one in self._strange)

    def all_of(self, prediction: Prediction, measurements: Iterable[Measurement]) -> tuple[Measured, ...]:
        """What is measured on a prediction, as `of`; labels that it has not are left out."""
        found = (self.of(prediction, one) for one in measurements)
        return tuple(one for one in found if one is not None)

    def of(self, outcome: Outcome, measurement: Measurement) -> Measured | None:
        """What is measured on an outcome; None without a prediction, or without the label in it.

        Of a `Prediction` it is measured once: later calls may come with reduced images.
        """
        if not isinstance(outcome, Prediction):
            return None
        place = (outcome.info.key, measurement)
        if place not in self._found:
            if measurement.label not in outcome.labels:
                # Only a server that was not there at the start can surprise a run with its labels.
                self._strange.add(measurement.label)
                return None
            self._found[place] = measure(outcome, measurement)
        return self._found[place]
