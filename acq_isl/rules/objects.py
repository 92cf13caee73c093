"""Measurements of the objects and lines of predicted labels, by scikit-image. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
from pydantic import Field
from scipy import ndimage

from acq_isl.rules.measurements import (
    LineMeasurement,
    ObjectMeasurement,
    inner_area_um2,
    inside,
    probability_above,
)
from acq_isl.rules.units import AREA, BRANCHES, DENSITY, DIAMETER, INTENSITY, RATIO, SHARE, Unit
from acq_isl.stack import ObjectCounting, Prediction


class Density(ObjectMeasurement):
    """Objects of a predicted label per square millimetre; counted as by `ObjectCount`."""

    unit = DENSITY
    kind: Literal["density"] = "density"

    @property
    def title(self) -> str:
        return f"density of objects in {self.label} (predicted)"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        count, doubt = self.count(prediction)
        known = any(isinstance(c, ObjectCounting) and c.label == self.label for c in prediction.counting)
        # A calibrated count is of the whole field, segmented objects are counted inside of its margin.
        rows, columns = prediction.info.shape
        whole_um2 = rows * columns * prediction.info.pixel_size_um**2
        area_um2 = whole_um2 if known and self.segmenter is None else inner_area_um2(prediction)
        return count / area_um2 * 1e6, doubt / area_um2 * 1e6


class Share(ObjectMeasurement):
    """Share of the objects of a label in which another label is bright, such as nuclei that are dead."""

    unit = SHARE
    kind: Literal["share"] = "share"
    positive: str
    """Label of the same model that tells the state, such as ``dead``."""
    positive_above: float = Field(default=0.5, allow_inf_nan=False)
    """Mean predicted intensity of ``positive`` in an object, above which it is in the state."""

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label, self.positive)

    @property
    def title(self) -> str:
        state = f"{self.positive} (predicted) above {self.positive_above:g}"
        return f"share of {self.label} (predicted) with {state}"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        objects = self.find(prediction)
        numbers = np.flatnonzero(inside(objects, prediction)) + 1
        if not numbers.size:
            return np.nan, np.nan
        state = prediction.labels.index(self.positive)
        means, spreads = (
            np.asarray(ndimage.mean(planes[state], objects, numbers))
            for planes in (prediction.mean, prediction.spread)
        )
        p = probability_above(means, spreads, self.positive_above)
        doubt = np.sqrt(np.sum(p * (1 - p))) / numbers.size
        return float(np.mean(means > self.positive_above)), float(doubt)


Statistic = Literal["mean", "median", "sum", "min", "max"]


def summarise(statistic: Statistic, values: Sequence[float]) -> float:
    """What several values come to; at least one is needed."""
    match statistic:
        case "mean":
            return float(np.mean(values))
        case "median":
            return float(np.median(values))
        case "sum":
            return float(np.sum(values))
        case "min":
            return float(np.min(values))
        case "max":
            return float(np.max(values))
        case _:
            assert_never(statistic)


Property = Literal["area", "diameter", "eccentricity", "solidity", "intensity"]
_PROPERTIES: dict[Property, tuple[str, int, Unit]] = {
    # name in scikit-image, and the power of the pixel size that makes it physical
    "area": ("area", 2, AREA),
    "diameter": ("equivalent_diameter_area", 1, DIAMETER),
    "eccentricity": ("eccentricity", 0, RATIO),
    "solidity": ("solidity", 0, RATIO),
    "intensity": ("intensity_mean", 0, INTENSITY),
}


@dataclass(frozen=True, slots=True)
class FoundObject:
    """One object: its number in its field, its centroid from the top left, and what was measured."""

    number: int
    y_px: float
    x_px: float
    value: float
    """In the unit of the measurement."""


class ObjectShape(ObjectMeasurement):
    """Size, shape or brightness of objects: of each in a rule per object, else of all in a field together."""

    kind: Literal["object"] = "object"
    unit = AREA
    what: Property = "area"
    """``area`` in um2, ``diameter`` of a disc of that area in um, ``eccentricity`` (0 round, 1 a line),
    ``solidity`` (share of its convex hull that it fills), or mean predicted ``intensity``."""
    of: str | None = None
    """Label whose intensity is measured in the objects. Default: their own."""
    statistic: Statistic = "mean"
    """What is said of a field with several objects."""

    @property
    def labels(self) -> tuple[str, ...]:
        return (self.label,) if self.of is None else (self.label, self.of)

    @property
    def measured_in(self) -> Unit:
        return _PROPERTIES[self.what][2]

    @property
    def title(self) -> str:
        of = "" if self.of is None else f" of {self.of} (predicted)"
        return f"{self.statistic} {self.what}{of} of objects in {self.label} (predicted)"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        values = [found.value for found in self.measure_objects(prediction)]
        return summarise(self.statistic, values) if values else np.nan, np.nan

    def measure_objects(self, prediction: Prediction) -> tuple[FoundObject, ...]:
        """Every object with its centroid outside of the unsure margin."""
        from skimage.measure import regionprops_table

        objects, (name, power, _) = self.find(prediction), _PROPERTIES[self.what]
        image = prediction.label(self.of or self.label)
        table = regionprops_table(objects, image, properties=("label", "centroid", name))
        scale, there = prediction.info.pixel_size_um**power, inside(objects, prediction)
        rows = zip(table["label"], table["centroid-0"], table["centroid-1"], table[name], strict=True)
        return tuple(
            FoundObject(int(n), float(y), float(x), float(value) * scale)
            for n, y, x, value in rows
            if there[int(n) - 1]
        )


class BranchPoints(LineMeasurement):
    """Number of points at which the middle lines of a network, such as axons, branch or cross."""

    unit = BRANCHES
    kind: Literal["branch_points"] = "branch_points"

    @property
    def title(self) -> str:
        return f"branch points of {self.label} (predicted) above {self.above:g}"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        lines = self.middle_lines(prediction)
        if lines is None:
            return np.nan, np.nan
        around = np.ones((3, 3), np.uint8)
        neighbours = ndimage.convolve(lines.astype(np.uint8), around, mode="constant") - lines
        # Pixels of one crossing touch each other.
        return float(ndimage.label(lines & (neighbours > 2), around)[1]), np.nan
