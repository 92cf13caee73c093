"""All triggers of an experiment with what they remember: the same in a run, `verify` and `replay`. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from acq_isl.rules.actions import Decision
from acq_isl.rules.measurements import MeasurementCache
from acq_isl.rules.rules import Trigger, decide
from acq_isl.stack import Outcome, Prediction

VerdictKind = Literal["act", "nothing", "proposed", "late"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What comes of a trigger on one outcome; ``withheld`` says why a decision is not carried out."""

    index: int
    decision: Decision
    kind: VerdictKind
    withheld: str = ""

    @property
    def done(self) -> str:
        """What became of it without anything being done, for people."""
        match self.kind:
            case "proposed":
                return f"proposed: {self.withheld}"
            case "late":
                return f"not done: {self.withheld}"
            case _:
                return "nothing"


class Decider:
    """Looks at outcomes one after the other, in the order of a run; owned by whoever shows them.

    ``owner`` names the model whose label it is. ``fired`` counts how often each trigger has acted.
    """

    def __init__(
        self, triggers: Sequence[Trigger], owner: Callable[[str], str | None], cache: MeasurementCache
    ) -> None:
        self._triggers, self._owner, self._cache = triggers, owner, cache
        self.fired: Counter[int] = Counter()

    def decide(self, outcome: Outcome, age_s: float, propose_only: Mapping[str, str]) -> tuple[Verdict, ...]:
        """Every trigger that looks at a label of the outcome's model.

        ``age_s`` is how long ago the last slice of the field was taken, ``propose_only`` why labels are not
        to be acted upon.
        """
        found = []
        for index, trigger in enumerate(self._triggers):
            if self._owner(trigger.when.measurement.label) == outcome.model:
                found.append(self._verdict(index, trigger, outcome, age_s, propose_only))
        return tuple(found)

    def _verdict(
        self, index: int, trigger: Trigger, outcome: Outcome, age_s: float, propose_only: Mapping[str, str]
    ) -> Verdict:
        measurement = trigger.when.measurement
        measured = self._cache.measure(outcome, measurement)
        decision = decide(trigger, outcome, measured, self.fired[index])
        if decision.action is None:
            return Verdict(index, decision, "nothing")
        if doubt := unlike_training(outcome) or propose_only.get(measurement.label, ""):
            return Verdict(index, decision, "proposed", doubt)
        if trigger.deadline_s is not None and age_s > trigger.deadline_s:
            return Verdict(index, decision, "late", explain_late(age_s, trigger.deadline_s))
        self.fired[index] += 1
        return Verdict(index, decision, "act")


def unlike_training(outcome: Outcome) -> str:
    """In what a predicted stack lies beyond the limits of the model's gate, for people; empty if in none."""
    if not isinstance(outcome, Prediction):
        return ""
    beyond = [each for each in outcome.distances if each.beyond]
    named = ", ".join(f"{each.name} {each.value:.3g} (limit {each.limit:.3g})" for each in beyond)
    return f"the stack looks unlike the model's training set: {named}" if beyond else ""


def explain_late(age_s: float, deadline_s: float) -> str:
    return f"too late, {age_s:.1f} s after the field's last slice; the deadline is {deadline_s:g} s"
