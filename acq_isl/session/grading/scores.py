"""Holds what a run predicted, chose and imaged against the truth. Pure: the truth is an argument."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.processing.counting import count_on_stain
from acq_isl.processing.display import display_range
from acq_isl.processing.segmentation import object_score
from acq_isl.processing.statistics import Amplitude, pearson
from acq_isl.rules import (
    AreaFraction,
    Best,
    Density,
    Measured,
    Measurement,
    Memory,
    ObjectCount,
    Ranking,
    Segmenter,
    Trigger,
    Watershed,
    evaluate,
)
from acq_isl.rules.measurements import ObjectMeasurement, measure
from acq_isl.rules.over_time import OverTime
from acq_isl.rules.rankings import Candidate
from acq_isl.rules.segmenters import find_objects
from acq_isl.scorecard import CellScore, ChoiceScore, CountScore, LabelScore, TriggerScore
from acq_isl.sim import CellTruth
from acq_isl.stack import Counting, Float32Image, NetworkLabel, ObjectCounting, Prediction, StackKey

# For labels that no rule looks at: half the brightness of an ordinary nucleus of the simulated truth, and
# about the area of a condensed nucleus.
_ABOVE, _LEAST_UM2 = 0.25, 10.0
_MARKED = 0.25


@dataclass(frozen=True, slots=True)
class LabelPair:
    """One predicted label of one field against the truth; as in `LabelScore`."""

    label: str
    pearson: float
    found: int
    true: int
    matched: int
    amplitude: Amplitude = dataclasses.field(default_factory=Amplitude)


@dataclass(frozen=True, slots=True, eq=False)
class KnownField:
    """An overview field of which the truth is known."""

    key: StackKey
    chosen: bool
    decided_s: float  # from its last slice to the prediction measured; NaN without a prediction
    labels: tuple[LabelPair, ...]  # empty without a prediction
    predicted: Mapping[Measurement, float]  # what the rules measure on the prediction
    true: Mapping[Measurement, float]  # what they measure on the truth
    cells: tuple[CellTruth, ...] | None  # None where the specimen does not know its cells
    doubts: Mapping[Measurement, float] = dataclasses.field(
        default_factory=dict
    )  # one SD of what is predicted


def marks(label: str, cell: CellTruth) -> bool:
    """Whether a label truly shows a cell."""
    return cell.markers.get(label, 0.0) >= _MARKED


def pair_labels(
    prediction: Prediction, truth: Mapping[str, Float32Image], rules: Sequence[Measurement]
) -> tuple[LabelPair, ...]:
    """Compare every label that was predicted and is known, (y, x) in 0..1 each."""
    pairs = []
    for label in prediction.labels:
        if label not in truth:
            continue
        predicted, true = prediction.label(label), np.asarray(truth[label], np.float32)
        bright = Amplitude.of(predicted, true)
        if NetworkLabel(label) in prediction.counting:  # fragments of a network are no objects
            pairs.append(LabelPair(label, pearson(predicted, true), 0, 0, 0, bright))
            continue
        segmenter, pixel_um = segmenter_of(label, rules, prediction.counting), prediction.info.pixel_size_um
        found, real = (find_objects(segmenter, image, pixel_um) for image in (predicted, true))
        score = object_score(found, real)
        objects = score.found, score.true, score.matched
        pairs.append(LabelPair(label, pearson(predicted, true), *objects, bright))
    return tuple(pairs)


def object_f1(*pairs: LabelPair) -> float:
    """2 matched / (found + true), of all pairs together; NaN without any object."""
    objects = sum(pair.found + pair.true for pair in pairs)
    return 2 * sum(pair.matched for pair in pairs) / objects if objects else math.nan


def to_bright_end(image: NDArray[Any]) -> Float32Image:
    """A stain in counts as labels are: 0 is its 1st percentile, 1 its 99.8th, (y, x) float32 in 0..1."""
    low, high = display_range(image)
    scaled: Float32Image = ((np.asarray(image, np.float32) - low) / max(high - low, 1e-9)).clip(0, 1)
    return scaled.astype(np.float32)


def segmenter_of(label: str, rules: Sequence[Measurement], counting: Sequence[Counting] = ()) -> Segmenter:
    """What tells the objects of a label apart: as a rule says that looks at it, else as its model counts."""
    looking = [rule for rule in rules if rule.label == label]
    objects = [rule for rule in looking if isinstance(rule, ObjectMeasurement)]
    fitted = next((each for each in counting if each.label == label), None)
    stated = (each for each in objects if each.segmenter or "above" in each.model_fields_set)
    if rule := next(stated, None):
        return rule.objects_by
    if isinstance(fitted, ObjectCounting):
        least_um2 = objects[0].min_area_um2 if objects else _LEAST_UM2
        return Watershed(above=fitted.above, min_area_um2=least_um2)
    if objects:
        return objects[0].objects_by
    above = next((rule.above for rule in looking if isinstance(rule, AreaFraction)), _ABOVE)
    return Watershed(above=above, min_area_um2=_LEAST_UM2)


def measure_truth(
    prediction: Prediction, truth: Mapping[str, Float32Image], rules: Sequence[Measurement]
) -> dict[Measurement, float]:
    """What the rules would have measured had the prediction been the truth; labels not known are left out.

    Where the model's calibration counts objects, they are counted on the true label as it was for the fit.
    """
    known = tuple(label for label in prediction.labels if label in truth)
    if not known:
        return {}
    mean = np.stack([truth[label] for label in known]).astype(np.float32)
    ideal = replace(prediction, labels=known, mean=mean, spread=np.zeros_like(mean))
    counted = {each.label for each in prediction.counting if isinstance(each, ObjectCounting)}

    def value(rule: Measurement) -> float:
        if isinstance(rule, ObjectCount | Density) and rule.segmenter is None and rule.label in counted:
            image, pixel_um = ideal.label(rule.label), ideal.info.pixel_size_um
            area_mm2 = image.size * pixel_um**2 * 1e-6 if isinstance(rule, Density) else 1.0
            return count_on_stain(image, pixel_um) / area_mm2
        return measure(ideal, rule).value

    of_one_field = (rule for rule in rules if rule.labels and not isinstance(rule, OverTime))
    return {rule: value(rule) for rule in of_one_field if set(rule.labels) <= set(known)}


def score_labels(fields: Sequence[KnownField]) -> tuple[LabelScore, ...]:
    """All fields together, label by label."""
    pairs: dict[str, list[LabelPair]] = {}
    for field in fields:
        for pair in field.labels:
            pairs.setdefault(pair.label, []).append(pair)
    return tuple(_score_label(label, some) for label, some in pairs.items())


def _score_label(label: str, pairs: Sequence[LabelPair]) -> LabelScore:
    finite = [pair.pearson for pair in pairs if math.isfinite(pair.pearson)]
    mean = sum(finite) / len(finite) if finite else math.nan
    found, true = sum(pair.found for pair in pairs), sum(pair.true for pair in pairs)
    bright = Amplitude.mean(pair.amplitude for pair in pairs)
    return LabelScore(label, mean, object_f1(*pairs), found, true, len(pairs), amplitude=bright)


def score_counts(fields: Sequence[KnownField]) -> tuple[CountScore, ...]:
    """What was counted against what is there, rule by rule, in the order of the fields."""
    rules = dict.fromkeys(rule for known in fields for rule in known.true if isinstance(rule, ObjectCount))
    return tuple(
        CountScore(
            rule.label,
            tuple(
                (_name(known.key), known.predicted[rule], known.doubts.get(rule, math.nan), known.true[rule])
                for known in fields
                if rule in known.true and math.isfinite(known.predicted.get(rule, math.nan))
            ),
        )
        for rule in rules
    )


def score_choice(rule: Ranking, fields: Sequence[KnownField]) -> ChoiceScore | None:
    """The choice against the true ranking of its time point; equal fields of `Best` share the better rank."""
    truly = _true_ranks(rule, fields)
    chosen = [field.key for field in fields if field.chosen and field.key in truly]
    if not chosen:
        return None
    places = Counter(key.time for key in chosen)
    wrong = [key for key in chosen if truly[key] > places[key.time]]
    missed: list[StackKey] = []
    for time, count in Counter(key.time for key in wrong).items():
        left = [key for key in truly if key.time == time and key not in chosen]
        missed += sorted(left, key=lambda key: truly[key])[:count]
    return ChoiceScore(
        what=rule.measurements[0].title if isinstance(rule, Best) else rule.title,
        chosen=len(chosen),
        right=len(chosen) - len(wrong),
        ranked=len(truly),
        wrong=tuple((_name(key), truly[key]) for key in wrong),
        missed=tuple(_name(key) for key in missed),
        rounds=len(places),
    )


def _true_ranks(rule: Ranking, fields: Sequence[KnownField]) -> dict[StackKey, int]:
    """Place of each field whose truth is known in its time point, from 1."""
    known: dict[int, list[Candidate]] = {}
    for field in fields:
        true = [(m, field.true.get(m, math.nan)) for m in rule.measurements]
        if all(math.isfinite(value) for _, value in true):
            measured = tuple(Measured(m.title, value, m.measured_in.name, math.nan) for m, value in true)
            known.setdefault(field.key.time, []).append(Candidate(field.key, measured))
    ranks = {}
    for some in known.values():
        for place, placed in enumerate(rule.order(some), start=1):
            ranks[placed.field.key] = place
        if isinstance(rule, Best):
            best_of: dict[float, int] = {}
            for one in sorted(some, key=lambda one: ranks[one.key]):
                ranks[one.key] = best_of.setdefault(one.values[0], ranks[one.key])
    return ranks


def score_trigger(
    trigger: Trigger, fields: Sequence[KnownField], judged: Mapping[StackKey, str]
) -> TriggerScore | None:
    """What a trigger did against what the truth asks for.

    ``judged`` is what became of its decision on each field: ``nothing``, ``spent`` where it had acted as
    often as it may, ``refused: ...`` and so on where its action was not carried out, else it was.
    """
    wanted = trigger.measurements
    known = [f for f in fields if all(m in f.true for m in wanted) and f.key in judged]
    if not known or trigger.scope != "field":
        return None
    groups: dict[str, list[str]] = {}
    memories: dict[str, Memory] = {}
    for field in sorted(known, key=lambda one: one.key):  # by time: a condition may ask for several visits
        true = {m: Measured(m.title, field.true[m], m.measured_in.name, math.nan) for m in wanted}
        found, memory = evaluate(trigger.when, true, memories.get(field.key.position))
        memories[field.key.position] = memory
        did, should = judged[field.key], bool(found.holds)
        groups.setdefault(_verdict(did, should), []).append(_name(field.key))
    alarms, missed, hindered = (tuple(groups.get(name, ())) for name in ("alarm", "missed", "hindered"))
    acted = sum(_acted(did) for did in judged.values())
    right, spent = len(groups.get("right", ())), len(groups.get("spent", ()))
    return TriggerScore(trigger.name, right, alarms, missed, acted, hindered, spent, len(known))


def _acted(did: str) -> bool:
    return not did.startswith(("nothing", "spent", "refused", "failed", "not done", "proposed"))


def _verdict(did: str, should: bool) -> str:
    if did == "spent":
        return "spent"
    if did != "nothing" and not _acted(did):
        return "hindered"
    if _acted(did) == should:
        return "right"
    return "missed" if should else "alarm"


def score_cells(label: str, fields: Sequence[KnownField], imaged: set[StackKey]) -> CellScore | None:
    """Wanted cells in the fields that were imaged in fluorescence; None where cells are not known.

    Fields are compared with those of the same time point, and only time points in which some were imaged
    count; a cell that is seen at two of them counts twice.
    """
    times = sorted({key.time for key in imaged})
    rounds = [[field for field in fields if field.key.time == time] for time in times]
    scores = [score for some in rounds if (score := _score_round(label, some, imaged)) is not None]
    if not scores:
        return None
    names = ("wanted", "there", "imaged", "at_random", "at_best", "fields", "of_fields")
    sums = {name: sum(getattr(score, name) for score in scores) for name in names}
    return CellScore(label=label, **sums, rounds=len(scores))


def _score_round(label: str, fields: Sequence[KnownField], imaged: set[StackKey]) -> CellScore | None:
    """The fields of one time point."""
    known = [field for field in fields if field.cells is not None]
    if not known:
        return None
    wanted = {field.key: {cell.id for cell in field.cells or () if marks(label, cell)} for field in known}
    there = {cell.id for field in known if field.key in imaged for cell in field.cells or ()}
    by_field, found = list(wanted.values()), [cells for key, cells in wanted.items() if key in imaged]
    return CellScore(
        label=label,
        wanted=len(set().union(*by_field)),
        there=len(there),
        imaged=len(set().union(*found)),
        at_random=_at_random(by_field, len(found)),
        at_best=_at_best(by_field, len(found)),
        fields=len(found),
        of_fields=len(known),
    )


def _at_random(wanted: Sequence[set[str]], draws: int) -> float:
    """Mean number of cells seen in ``draws`` different fields; a cell may lie in several that overlap."""
    every = math.comb(len(wanted), draws)
    shared = Counter(cell for cells in wanted for cell in cells)
    return sum(1 - math.comb(len(wanted) - fields, draws) / every for fields in shared.values())


def _at_best(wanted: Sequence[set[str]], draws: int) -> int:
    """Cells in the best fields, each next one the one that adds most."""
    found: set[str] = set()
    for _ in range(draws):
        found |= max(wanted, key=lambda cells: len(cells - found))
    return len(found)


def _name(key: StackKey) -> str:
    return f"{key.position} t{key.time}" if key.time else key.position
