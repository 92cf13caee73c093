"""``dose.csv``: the light that each field got, and each predicted object of fields imaged in fluorescence."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from acq_isl.errors import AcqIslError
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.files import write_whole
from acq_isl.rules.imaging import CentreObject
from acq_isl.rules.light import Dose, LightLimits
from acq_isl.rules.measurements import ObjectMeasurement
from acq_isl.rules.over_time import innermost
from acq_isl.rules.pixels import PixelToStage
from acq_isl.rules.segmenters import Segmenter, find_objects
from acq_isl.session.fields import Field
from acq_isl.session.summary import RunParts, Stored
from acq_isl.stack import Prediction

FILE = "dose.csv"
_NAMES = ("time_point", "position", "label", "object", "x_um", "y_um", "area_um2", "preset", "ms", "mj_cm2")


@dataclass(frozen=True, slots=True)
class _Place:
    """A field, or an object of it (``number`` from 1), on the stage."""

    time_point: int
    position: str
    x_um: float
    y_um: float
    label: str = ""
    number: int = 0
    area_um2: float = 0.0


def write_doses(
    folder: Path, experiment: Experiment, session: RunParts, stored: Stored, affine: PixelToStage | None
) -> tuple[str, ...]:
    """Write the table; what it comes to, for people. Objects are those that rules look at.

    Light of the whole run is added up at the place where an object was predicted last. Without ``affine`` the
    camera is taken to be in line with the stage.
    """
    planned = {request.preset for cycle in session.cycles for request in cycle.requests}
    asked, doses, limits = _objects_asked(experiment), session.light.doses, experiment.limits.light
    rows: list[tuple[_Place, str, float]] = []
    for field in _last_visits(session):
        place = _Place(
            field.request.key.time, field.request.key.position, field.request.x_um, field.request.y_um
        )
        near = [dose for dose in doses if _touches(dose, place)]
        rows += [(place, preset, ms) for preset, ms in _light_at(near, place).items()]
        if not {dose.preset for dose in near} - planned:
            continue
        for each in _objects(field, asked, stored, affine):
            rows += [(each, preset, ms) for preset, ms in _light_at(near, each).items()]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_NAMES)
    table.writerows(_cells(limits, *row) for row in rows)
    write_whole(folder / FILE, text.getvalue())
    return tuple(_words(limits, rows, planned))


def _objects_asked(experiment: Experiment) -> tuple[tuple[str, Segmenter], ...]:
    rules = (rule for rule in map(innermost, measurements(experiment)) if isinstance(rule, ObjectMeasurement))
    found = [(rule.label, rule.objects_by) for rule in rules]
    actions = (trigger.do for trigger in experiment.triggers)
    found += [(action.label, action.objects_by) for action in actions if isinstance(action, CentreObject)]
    first = {label: segmenter for label, segmenter in reversed(found)}
    return tuple(first.items())


def _last_visits(session: RunParts) -> list[Field]:
    imaged = {request.key for request in session.acquired}
    last = {field.request.key.position: field for key, field in session.fields.items() if key in imaged}
    return list(last.values())


def _touches(dose: Dose, place: _Place) -> bool:
    """Whether two fields of view have anything in common."""
    apart = abs(dose.x_um - place.x_um), abs(dose.y_um - place.y_um)
    return all(way <= side for way, side in zip(apart, dose.fov_um, strict=True))


def _light_at(doses: Sequence[Dose], place: _Place) -> dict[str, float]:
    sums: dict[str, float] = {}
    for dose in doses:
        if dose.covers(place.x_um, place.y_um):
            sums[dose.preset] = sums.get(dose.preset, 0.0) + dose.ms
    return sums


def _objects(
    field: Field, asked: Sequence[tuple[str, Segmenter]], stored: Stored, affine: PixelToStage | None
) -> Iterator[_Place]:
    by_label = {label: made.model for made in field.predictions for label in made.labels}
    for label, segmenter in asked:
        if label in by_label:
            try:
                prediction = stored.prediction(field.request.key, by_label[label])
            except AcqIslError:  # of a run that ended hard it is not on disk; the field's light is told
                continue
            yield from _places(prediction, label, segmenter, affine)


def _places(
    prediction: Prediction, label: str, segmenter: Segmenter, affine: PixelToStage | None
) -> Iterator[_Place]:
    info = prediction.info
    objects = find_objects(segmenter, prediction.label(label), info.pixel_size_um)
    numbers = np.arange(1, int(objects.max(initial=0)) + 1)
    if not len(numbers):
        return
    middles = np.array(ndimage.center_of_mass(objects > 0, objects, numbers))
    areas = np.bincount(objects.ravel(), minlength=len(numbers) + 1)[1:] * info.pixel_size_um**2
    affine = affine or PixelToStage.nominal(info.pixel_size_um)
    for number, (row, column), area_um2 in zip(numbers, middles, areas, strict=True):
        x_um, y_um = affine.offset_um(float(row), float(column), info.shape)
        at = info.x_um + x_um, info.y_um + y_um
        yield _Place(info.key.time, info.key.position, *at, label, int(number), float(area_um2))


def _cells(limits: LightLimits, place: _Place, preset: str, ms: float) -> tuple[object, ...]:
    known = preset in limits.irradiance_mw_cm2
    dose = f"{limits.cost(preset, ms, 'mJ/cm2'):.6g}" if known else ""
    area = f"{place.area_um2:.1f}" if place.number else ""
    at = f"{place.x_um:.2f}", f"{place.y_um:.2f}"
    number = place.number or ""
    return place.time_point, place.position, place.label, number, *at, area, preset, f"{ms:g}", dose


def _words(
    limits: LightLimits, rows: Sequence[tuple[_Place, str, float]], planned: set[str]
) -> Iterator[str]:
    lit: dict[tuple[str, str], list[float]] = {}
    for place, preset, ms in rows:
        if place.number and preset not in planned:
            lit.setdefault((preset, place.label), []).append(ms)
    for (preset, label), found in lit.items():
        middle, most = statistics.median(found), max(found)
        text = f"{preset}, for each of {len(found)} objects of {label} (predicted): {middle / 1e3:.3g} s"
        text += f", at most {most / 1e3:.3g} s" if most > middle else ""
        if preset in limits.irradiance_mw_cm2:
            text += f" ({limits.cost(preset, middle, 'mJ/cm2'):.3g} mJ/cm2)"
        yield f"{text}; {FILE} has each."
