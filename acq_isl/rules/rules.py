"""Triggers: when a condition holds, something is done on the microscope. Pure: nothing moves here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from acq_isl.base import StrictModel
from acq_isl.rules.actions import Action, Decision
from acq_isl.rules.conditions import Condition, Evaluation, Threshold, evaluate, thresholds, walk
from acq_isl.rules.measurements import Measured, Measurement
from acq_isl.rules.objects import ObjectShape, Statistic
from acq_isl.rules.rankings import why_unranked
from acq_isl.rules.reaction import AfterStack, React
from acq_isl.stack import Outcome, Prediction, StackKey

Scope = Literal["object", "field", "well", "run"]


class Trigger(StrictModel):
    """When a condition on what is predicted holds, do something on the microscope."""

    name: str = Field(default="trigger", min_length=1)
    """For the report."""
    when: Condition
    """A threshold, or a tree of conditions."""
    do: Action
    """What is done."""
    at_most: int = Field(default=1, ge=1)
    """How often in one run."""
    deadline_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Longest time from a field's last slice to the decision; a later one is told and not carried out."""
    react: React = AfterStack()
    """How soon: ``{within: stack}`` or ``{within: slice, then: finish}`` (or ``repeat``)."""
    scope: Scope = "field"
    """What the condition is about: each ``object`` (one is enough), each ``field``, all fields of a ``well``,
    or of the ``run``, at one time point; the last two are decided once all their fields are predicted."""
    statistic: Statistic = "mean"
    """What is made of the values of the fields of a well or run."""
    require: float = Field(default=1.0, ge=0, le=1)
    """Share of the fields of a well or run that must be predicted; with fewer, nothing is decided."""

    @model_validator(mode="after")
    def _objects_alike(self) -> Trigger:
        if self.scope != "object":
            return self
        if any(not isinstance(m, ObjectShape) for m in self.measurements):
            raise ValueError("scope: object needs measurements of kind object, as of each single one")
        if len({(m.label, m.objects_by) for m in self.measurements if isinstance(m, ObjectShape)}) > 1:
            raise ValueError(
                "scope: object needs all measurements on the same objects: one label, one segmenter"
            )
        parts = walk(self.when)
        if any(getattr(part, "visits", 1) > 1 or getattr(part, "hysteresis", 0) for part in parts):
            raise ValueError(
                "scope: object knows no 'for' and no hysteresis: objects are not followed over time"
            )
        return self

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """All thresholds of its condition."""
        return thresholds(self.when)

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """What its condition looks at, each once."""
        return tuple(dict.fromkeys(threshold.measurement for threshold in self.thresholds))


def decide(trigger: Trigger, outcome: Outcome, found: Evaluation | Measured | None, fired: int) -> Decision:
    """What a trigger does about one field; it never fires without a prediction.

    ``found`` is what its condition comes to, or, of a condition on one measurement, what was measured.
    ``fired`` is how often it fired in this run already.
    """
    key, first = outcome.info.key, trigger.thresholds[0]
    if not isinstance(outcome, Prediction) or found is None:
        return hold_back(trigger, key, why_unranked(outcome).replace("Not ranked: ", "No decision: "))
    if isinstance(found, Measured):
        found, _ = evaluate(trigger.when, {first.measurement: found})
    return conclude(trigger, key, found, fired, outcome.warnings)


def hold_back(trigger: Trigger, key: StackKey, why: str) -> Decision:
    """No decision."""
    return Decision(key, trigger.name, "nothing", why, math.nan, trigger.thresholds[0].value, None)


def conclude(
    trigger: Trigger, key: StackKey, found: Evaluation, fired: int, mind: Sequence[str] = ()
) -> Decision:
    """What an evaluation leads to; ``mind`` are warnings of the prediction it rests on."""
    action, why = None, found.why
    if found.holds and fired >= trigger.at_most:
        why += f", but the trigger may act only {trigger.at_most} x"
    elif found.holds:
        why += f" (mind: {'; '.join(mind)})" if mind else ""
        action = trigger.do
    what, seen = action.title if action else "nothing", found.measured
    value = seen[0].value if seen else math.nan
    return Decision(key, trigger.name, what, why, value, trigger.thresholds[0].value, action, seen)
