"""From measurements to choices and actions, each with its reason. Pure: nothing moves here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from pydantic import Field, model_validator

from acq_isl.base import StrictModel
from acq_isl.rules.actions import Action, Decision
from acq_isl.rules.measurements import Measured, Measurement, readable
from acq_isl.rules.reaction import AfterStack, React
from acq_isl.stack import Outcome, Prediction, Refusal, StackKey, Unpredicted

_ROUNDING = 1e-9


class Threshold(StrictModel):
    """Passed when the measurement is strictly above, or strictly below, a value; give one of the two."""

    measurement: Measurement
    above: float | None = Field(default=None, allow_inf_nan=False)
    """In the measurement's unit: objects, or a fraction of 1."""
    below: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_side(self) -> Threshold:
        if (self.above is None) == (self.below is None):
            raise ValueError("give either 'above' or 'below', not both and not neither")
        return self

    @property
    def side(self) -> Literal["above", "below"]:
        return "above" if self.above is not None else "below"

    @property
    def value(self) -> float:
        """The threshold, in the measurement's unit."""
        return self.above if self.above is not None else float(self.below or 0.0)

    def passed(self, value: float) -> bool:
        """Whether a value passes; a value that is not a number never does."""
        return value > self.value if self.side == "above" else value < self.value


class Trigger(StrictModel):
    """When a predicted label of a field passes a threshold, do something on the microscope."""

    name: str = Field(default="trigger", min_length=1)
    when: Threshold
    do: Action
    at_most: int = Field(default=1, ge=1)
    """How often in one run."""
    deadline_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Longest time from a field's last slice to the decision; a later one is told and not carried out."""
    react: React = AfterStack()
    """How soon: ``{within: stack}`` or ``{within: slice, then: finish}`` (or ``repeat``)."""


class Best(StrictModel):
    """Go back to the fields where a predicted label measures highest (or lowest)."""

    kind: Literal["best"] = "best"
    k: int = Field(ge=1)
    """How many fields."""
    measurement: Measurement
    descending: bool = True
    """True for the highest values, False for the lowest."""
    require: float = Field(default=1.0, ge=0, le=1)
    """Share of the fields of a time point that must be ranked; with fewer, nothing is chosen."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a field stands in a ranking, and why; rank 1 is best, None if it cannot be ranked."""

    key: StackKey
    rank: int | None
    chosen: bool
    measured: Measured | None
    reason: str


def rank(rule: Best, fields: Sequence[tuple[Outcome, Measured | None]]) -> tuple[Choice, ...]:
    """Order fields by ``rule.measurement``, which comes with each, and choose the best ``k``.

    Ranked fields come first, best first (equal values in the order given), then those that cannot be ranked:
    refused, not predicted, or measured as not a number. Those are never chosen, and with too many of them
    (``rule.require``) none is.
    """
    ranked: list[tuple[StackKey, Measured]] = []
    unranked = []
    for outcome, measured in fields:
        key = outcome.info.key
        if isinstance(outcome, Prediction) and measured and math.isfinite(measured.value):
            ranked.append((key, measured))
        else:
            unranked.append(Choice(key, None, False, measured, _why_unranked(outcome)))
    ranked.sort(key=lambda field: field[1].value, reverse=rule.descending)
    choices = [_choice(rule, ranked, place) for place in range(len(ranked))]
    if len(ranked) < rule.require * len(fields) - _ROUNDING:
        why = f"Not chosen: {explain_unranked(len(unranked), len(fields))}, so no choice was made"
        choices = [
            replace(choice, chosen=False, reason=f"{why} ({choice.reason.partition(': ')[2].rstrip('.')}).")
            for choice in choices
        ]
    return (*choices, *unranked)


def explain_unranked(unranked: int, fields: int) -> str:
    """How many fields of a ranking are not in it, for people."""
    return f"{unranked} of {fields} fields {'was' if unranked == 1 else 'were'} not ranked"


def _choice(rule: Best, ranked: list[tuple[StackKey, Measured]], place: int) -> Choice:
    key, measured = ranked[place]
    what = f"{rule.measurement.title}: {readable(measured)}"
    position = f"rank {place + 1} of {len(ranked)}, {'highest' if rule.descending else 'lowest'} first"
    if place >= rule.k:
        return Choice(key, place + 1, False, measured, f"Not chosen: {what} ({position}; {rule.k} wanted).")
    reason = f"Chosen: {what} ({position})."
    if rule.k < len(ranked):
        first_out = ranked[rule.k][1]
        if abs(measured.value - first_out.value) < math.hypot(measured.doubt, first_out.doubt):
            reason += f" Its lead over rank {rule.k + 1}, which was not chosen, is within the doubt."
    return Choice(key, place + 1, True, measured, reason)


def _why_unranked(outcome: Outcome) -> str:
    match outcome:
        case Refusal(reason=reason):
            return f"Not ranked: the model refused this stack, {reason.rstrip('.')}."
        case Unpredicted(reason=reason):
            return f"Not ranked: this stack was captured but not predicted, {reason.rstrip('.')}."
        case Prediction():
            return "Not ranked: the measurement gave no number."
        case _:
            assert_never(outcome)


def decide(trigger: Trigger, outcome: Outcome, measured: Measured | None, fired: int) -> Decision:
    """What a trigger does about one field, measured by its rule; it never fires without a prediction.

    ``fired`` is how often it fired in this run already.
    """
    when, key = trigger.when, outcome.info.key
    if not isinstance(outcome, Prediction) or measured is None:
        why = _why_unranked(outcome).replace("Not ranked: ", "No decision: ")
        return Decision(key, trigger.name, "nothing", why, math.nan, when.value, None)
    found = f"{when.measurement.title} is {readable(measured)}"
    wanted = f"{when.side} {when.measurement.unit.write(when.value)}"
    if not when.passed(measured.value):
        action, why = None, f"{found}, not {wanted}"
    elif fired >= trigger.at_most:
        action, why = None, f"{found}, {wanted}, but the trigger may act only {trigger.at_most} x"
    else:
        warnings = f" (mind: {'; '.join(outcome.warnings)})" if outcome.warnings else ""
        action, why = trigger.do, f"{found}, {wanted}{warnings}"
    what = action.title if action else "nothing"
    return Decision(key, trigger.name, what, why, measured.value, when.value, action)
