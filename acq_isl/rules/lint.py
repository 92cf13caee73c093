"""What is odd in rules, before anything moves: never or always true, without unit, out of reach. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from acq_isl.rules.actions import Action
from acq_isl.rules.conditions import AnyOf, Condition, Threshold, describe, thresholds, walk
from acq_isl.rules.imaging import CentreObject
from acq_isl.rules.label_names import Labels
from acq_isl.rules.measurements import Measurement, ObjectMeasurement
from acq_isl.rules.over_time import GrowthRate, OverTime, innermost
from acq_isl.rules.rankings import Pareto, Quota, Ranking, Weighted
from acq_isl.rules.rules import Trigger
from acq_isl.rules.satisfiable import terms, within_units
from acq_isl.rules.schedules import Queue, Rate, RevisitWhen, Schedule, TimeBudget
from acq_isl.rules.similarity import Novelty, Quality
from acq_isl.rules.units import units_of
from acq_isl.stack import NetworkLabel

_BARE = frozenset({
    "objects", "fraction", "relative intensity", "ratio", "of the gate's limit", "branch points", "number"
})  # fmt: skip
"""Units that a number without a unit cannot be mistaken in."""


@dataclass(frozen=True, slots=True)
class Lint:
    """One remark; an ``error`` can never come true, and no run is started with it."""

    level: Literal["error", "warning"]
    where: str
    """Which rule, such as ``the trigger 'many'``."""
    text: str
    fix: str = ""
    key: str = ""
    """Of the experiment file, such as ``triggers.0.when``; what is said in a rule of it begins there."""

    @property
    def said(self) -> str:
        """What is odd, and where it stands."""
        place = f" (at {self.key})" if self.key else ""
        return f"{self.where} {self.text}".strip() + place

    def __str__(self) -> str:
        return self.said + (f"; to fix: {self.fix}" if self.fix else "")


def lint_condition(where: str, condition: Condition, *, bounded: bool = True) -> Iterator[Lint]:
    """Contradictions, alternatives that are none, what always holds, and units.

    ``bounded``: values keep to the range of their unit, as a sum of shares does not.
    """
    yield from _lint_truth(where, condition, bounded)
    for threshold in thresholds(condition):
        yield from _lint_unit(where, threshold)


def _lint_truth(where: str, condition: Condition, bounded: bool) -> Iterator[Lint]:
    holds, fails = terms(condition), terms(condition, wanted=False)
    if holds is None or fails is None:
        yield Lint("warning", where, "has too many alternatives to look for contradictions")
    elif not holds:
        yield Lint("error", where, f"is contradictory: {describe(condition)}", "correct one of the numbers")
    elif bounded and not any(map(within_units, holds)):
        fix = "correct the number; shares are fractions of 1, not per cent, unless unit: '%' stands beside"
        yield Lint("error", where, f"can never act: {_never(condition)}", fix)
    elif not fails or (bounded and not any(map(within_units, fails))):
        yield Lint("warning", where, f"acts on every field: always {describe(condition)}")
    else:
        yield from _lint_alternatives(where, condition, bounded)


def _lint_alternatives(where: str, condition: Condition, bounded: bool) -> Iterator[Lint]:
    for part in walk(condition):
        for one in part.any if isinstance(part, AnyOf) else ():
            found = terms(one)
            if found is not None and not any(within_units(term) or not bounded for term in found):
                text = f"has an alternative that can never hold: {describe(one)}"
                yield Lint("warning", where, text, "leave it out")


def _never(condition: Condition) -> str:
    """Which thresholds lie beyond what can be measured, and how far that goes."""
    beyond = [
        f"{each.measurement.title} is never {each.wanted} ({each.measurement.measured_in.range})"
        for each in thresholds(condition)
        if not any(map(within_units, terms(each) or ()))
    ]
    return "; ".join(beyond) or describe(condition)


def _lint_unit(where: str, threshold: Threshold) -> Iterator[Lint]:
    unit = threshold.measurement.measured_in
    if threshold.unit is not None or unit.name in _BARE:
        return
    others = f" (or {', '.join(units_of(unit)[1:])})" if units_of(unit)[1:] else ""
    text = f"gives no unit: {threshold.measurement.title} {threshold.wanted} was understood"
    yield Lint("warning", where, text, f"write unit: {unit.name}{others}")


def lint_trigger(trigger: Trigger, time_points: int, wells: int) -> Iterator[Lint]:
    """What is odd in a trigger of a run with so many time points, and wells by the names of positions."""
    where = f"the trigger {trigger.name!r}"
    bounded = trigger.scope not in ("well", "run") or trigger.statistic != "sum"
    yield from lint_condition(where, trigger.when, bounded=bounded)
    yield from _lint_visits(where, trigger.when, time_points, "can never act")
    yield from _lint_release(where, trigger.when)
    if trigger.scope == "well" and not wells:
        text = "is about wells, and no position is named as a well is (A1_000): all fields are taken together"
        yield Lint("warning", where, text, "scope: run says the same", "scope")


def _lint_release(where: str, condition: Condition) -> Iterator[Lint]:
    """A hysteresis so wide that what has once passed can never end."""
    for threshold in thresholds(condition):
        unit, back = threshold.measurement.measured_in, threshold.own_hysteresis
        low, high = threshold.interval
        stays = low - back < unit.low or low == -math.inf, high + back > unit.high or high == math.inf
        if back and all(stays):
            what = f"{threshold.measurement.title} {threshold.wanted}"
            text = f"never ends once it holds: {what}, with a hysteresis"
            fix = f"lower it; there is {unit.range} to come back to"
            yield Lint("warning", where, f"{text} of {threshold.hysteresis:g}", fix)


def lint_ranking(rule: Ranking, time_points: int, wells: int = 1) -> Iterator[Lint]:
    """What is odd in a choice among so many wells, by the names of positions."""
    if isinstance(rule, Weighted):
        weights: dict[Measurement, float] = {}
        for term in rule.terms:
            weights[term.measurement] = weights.get(term.measurement, 0.0) + term.weight
        if not any(weights.values()):
            text = "can rank nothing: the weights come to 0 for every measurement"
            yield Lint("error", "choose", text, "give one of them a weight", "terms")
    if isinstance(rule, Pareto) and rule.goals[0].measurement == rule.goals[1].measurement:
        text = "weighs a measurement against itself: " + (
            "one goal says the same" if rule.goals[0] == rule.goals[1] else "no field beats another in both"
        )
        yield Lint("warning", "choose", text, "take two different measurements", "goals")
    if isinstance(rule, Quota) and not wells:
        text = "has a quota of each well, and no position is named as a well is (A1_000): they are one"
        yield Lint("warning", "choose", text, "name the positions, or take kind: best", "each")
    for measurement in rule.measurements:
        if time_points < 2 and isinstance(measurement, OverTime):
            text = f"can rank nothing: {measurement.title} is not known with one time point"
            yield Lint("error", "choose", text, _MORE_TIMES)


def lint_schedule(
    schedule: Schedule, time_points: int, fields: int = 0, lasts_s: float = math.inf
) -> Iterator[Lint]:
    """What is odd in a schedule of so many fields, from whose first time point to the last it is so long."""
    if time_points > 1:
        yield from _lint_pace(schedule, time_points, fields, lasts_s)
    if time_points < 2:
        text = "has nothing to decide: the overview has one time point"
        yield Lint("warning", "schedule", text, _MORE_TIMES)
    if schedule.condition is not None:
        yield from lint_condition("schedule", schedule.condition)
        if time_points > 1:
            yield from _lint_visits("schedule", schedule.condition, time_points, "can never change anything")


def _lint_pace(schedule: Schedule, time_points: int, fields: int, lasts_s: float) -> Iterator[Lint]:
    """Numbers of a schedule that are beyond what the time points can show."""
    run = f"the run has {time_points} time points in {lasts_s:g} s"
    match schedule:
        case RevisitWhen(else_every=every) if every >= time_points:
            text = f"never looks at other fields again: every {every} time points, and {run}"
            yield Lint("warning", "schedule", text, "lower it", "else_every")
        case TimeBudget(at_least_every=every) if every >= time_points:
            text = f"never lets a field come first: left out {every} times, and {run}"
            yield Lint("warning", "schedule", text, "lower it", "at_least_every")
        case Queue(fields=many) if 0 < fields <= many:
            text = f"has nothing to decide: {many} fields at each time point, and there are {fields}"
            yield Lint("warning", "schedule", text, "lower 'fields'", "fields")
        case Queue(within_s=within_s, urgent_within_s=urgent_s) if (
            min(within_s, urgent_s or within_s) > lasts_s
        ):
            text = f"has deadlines that never come: {within_s:g} s, and {run}"
            yield Lint("warning", "schedule", text, "shorten them", "within_s")
        case Rate(per_h=per_h, then_per_h=then) if 3600 / max(per_h, then or per_h) > lasts_s * 1.02:
            text = f"can never image a field again: {max(per_h, then or per_h):g} times an hour, and {run}"
            yield Lint("error", "schedule", text, "raise the rate, or plan more time", "per_h")
        case _:
            pass


_MORE_TIMES = "give the overview a time_plan"


def _lint_visits(where: str, condition: Condition, time_points: int, so: str) -> Iterator[Lint]:
    longest = max(getattr(part, "visits", 1) for part in walk(condition))
    if longest > time_points:
        text = f"{so}: wanted for {longest} visits in a row, and there are {time_points} time points"
        yield Lint("error", where, text, f"'for: {time_points}' at most, or more time points")
    for threshold in thresholds(condition):
        measurement = threshold.measurement
        if time_points < 2 and isinstance(measurement, OverTime):
            text = f"{so}: {measurement.title} is not known with one time point"
            yield Lint("error", where, text, _MORE_TIMES)
        elif isinstance(measurement, GrowthRate) and measurement.visits > time_points:
            text = f"wants {measurement.title} over {measurement.visits} visits, and there are {time_points}"
            yield Lint("warning", where, text)
        if threshold.hysteresis and time_points < 2:
            yield Lint("warning", where, "has a hysteresis, which one time point knows nothing of")


def lint_action(where: str, action: Action, labels: Labels) -> Iterator[Lint]:
    """What an action looks for that these models do not have."""
    if not isinstance(action, CentreObject):
        return
    networks = {each.label for each in labels.counting if isinstance(each, NetworkLabel)}
    if action.label not in labels.names:
        text = f"can never act: there is no label {action.label!r}"
        yield Lint("error", where, f"{text}; the model predicts {', '.join(labels.names)}")
    elif action.label in networks:
        yield Lint("error", where, f"can never act: {action.label} are a network, which has no objects")


def lint_model(where: str, measurements: tuple[Measurement, ...], labels: Labels) -> Iterator[Lint]:
    """What a rule looks at that these models do not have."""
    networks = {each.label for each in labels.counting if isinstance(each, NetworkLabel)}
    gated = any(manifest.gate is not None for manifest in labels.manifests.values())
    for measurement in map(innermost, measurements):
        for label in measurement.labels:
            if label not in labels.names:
                has = f"the model predicts {', '.join(labels.names)}"
                yield Lint("error", where, f"can never act: there is no label {label!r}; {has}")
        if isinstance(measurement, ObjectMeasurement) and measurement.label in networks:
            text = f"can never act: {measurement.label} are a network, which has no objects"
            yield Lint("error", where, text, "take length, area_fraction or mean_intensity")
        if isinstance(measurement, Novelty | Quality) and not gated:
            text = f"can never act: {measurement.title} is not known, as the model has no gate"
            yield Lint("error", where, text)
