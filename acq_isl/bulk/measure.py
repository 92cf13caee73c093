"""The numbers that `--measure` writes down: of each label of a field, and of each of its objects. Pure."""

from __future__ import annotations

import math

from acq_isl.bulk.work import MeasuredRow, ObjectRow
from acq_isl.errors import ExperimentError
from acq_isl.rules import AreaFraction, MeanIntensity, Measurement, NetworkLength, ObjectCount, Watershed
from acq_isl.rules.measurements import measure
from acq_isl.rules.segmenters import find_objects
from acq_isl.stack import NetworkLabel, Prediction


def measure_labels(prediction: Prediction) -> tuple[MeasuredRow, ...]:
    """Count or length, area and mean of each label; None where a measurement failed or knows no SD."""
    networks = {each.label for each in prediction.counting if isinstance(each, NetworkLabel)}
    rows = []
    for label in prediction.labels:
        amount: Measurement = NetworkLength(label=label) if label in networks else ObjectCount(label=label)
        for kind in (amount, AreaFraction(label=label), MeanIntensity(label=label)):
            try:
                found = measure(prediction, kind)
                value, sd = found.value, found.doubt
            except ExperimentError:
                value = sd = math.nan
            rows.append(
                MeasuredRow(
                    label=label,
                    measurement=kind.kind,
                    value=_known(value),
                    sd=_known(sd),
                    unit=kind.unit.name,
                )
            )
    return tuple(rows)


def measure_objects(prediction: Prediction) -> tuple[ObjectRow, ...]:
    """Each segmented object of each label that is no network; their number is not the calibrated count.

    They are brighter than the maxima that the model's calibration counts must be, or than 0.5 without one.
    """
    from skimage.measure import regionprops_table

    pixel_um = prediction.info.pixel_size_um
    counted = {each.label: each for each in prediction.counting}
    rows = []
    for label in prediction.labels:
        counting = counted.get(label)
        if isinstance(counting, NetworkLabel):
            continue
        image = prediction.label(label)
        by = Watershed() if counting is None else Watershed(above=counting.above)
        objects = find_objects(by, image, pixel_um)
        wanted = ("label", "centroid", "area", "intensity_mean")
        table = regionprops_table(objects, image, properties=wanted)
        columns = (
            table[name].tolist() for name in ("label", "centroid-1", "centroid-0", "area", "intensity_mean")
        )
        rows += [
            ObjectRow(
                label=label, object=number, x_um=x * pixel_um, y_um=y * pixel_um,
                area_um2=area * pixel_um**2, mean=mean,
            )
            for number, x, y, area, mean in zip(*columns, strict=True)
        ]  # fmt: skip
    return tuple(rows)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
