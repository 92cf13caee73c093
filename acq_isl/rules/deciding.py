"""All triggers of an experiment with what they remember: the same in a run, `verify` and `replay`. Pure.

Who does the same again, with the same outcomes in the same order, gets the same decisions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from acq_isl.rules.actions import Decision
from acq_isl.rules.cache import MeasurementCache
from acq_isl.rules.conditions import Evaluation, Memory, describe, evaluate
from acq_isl.rules.measurements import Measured, Measurement, write_down
from acq_isl.rules.objects import FoundObject, Statistic, summarise
from acq_isl.rules.rules import Trigger, conclude, decide, hold_back
from acq_isl.rules.series import named_well, well_name
from acq_isl.stack import Outcome, Prediction, StackKey, Unpredicted

_ROUNDING = 1e-9
Values = Mapping[Measurement, Measured | None]

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


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a trigger saw of a field: values, if all models predicted it, and why not to act upon them."""

    outcome: Outcome  # its images are not looked at any more
    values: Values | None
    doubt: str


class Decider:
    """Looks at outcomes one after the other, in the order of a run; owned by whoever shows them.

    ``owner`` names the model whose label it is. ``fired`` counts how often each trigger has acted,
    ``memories`` is what its condition knows of each place: a position, a well, or the run. A trigger that
    looks at labels of several models waits for all of them, one about a well or run for all of its fields:
    those of `expect`, until `close`.
    """

    def __init__(
        self, triggers: Sequence[Trigger], owner: Callable[[str], str | None], cache: MeasurementCache
    ) -> None:
        self._triggers, self._owner, self._cache = triggers, owner, cache
        self.fired: Counter[int] = Counter()
        self.memories: dict[tuple[int, str], Memory] = {}
        self._answers: dict[tuple[StackKey, str], Outcome] = {}
        self._expected: dict[int, tuple[StackKey, ...]] = {}
        self._seen: dict[tuple[int, StackKey], _Seen] = {}
        self._closed: set[tuple[int, int, str]] = set()

    def expect(self, keys: Sequence[StackKey]) -> None:
        """Fields of one time point that are going to be looked at, so that wells and runs are complete."""
        for time in {key.time for key in keys}:
            own = (key for key in keys if key.time == time)
            self._expected[time] = tuple(dict.fromkeys((*self._expected.get(time, ()), *own)))

    def decide(self, outcome: Outcome, age_s: float, propose_only: Mapping[str, str]) -> tuple[Verdict, ...]:
        """What all triggers make of an outcome, as far as they have all that they need to know.

        ``age_s`` is how long ago the last slice of the field was taken, ``propose_only`` why labels are not
        to be acted upon.
        """
        key, found = outcome.info.key, list[Verdict]()
        self._answers[key, outcome.model] = _light(outcome)
        for index, trigger in enumerate(self._triggers):
            if (index, key) in self._seen or not self._look(index, outcome, propose_only):
                continue
            if trigger.scope in ("well", "run"):
                found += self._group(index, key, age_s)
            else:
                found.append(self._on_field(index, key, age_s))
        return tuple(found)

    def close(self, time: int) -> tuple[Verdict, ...]:
        """Decide on wells and runs of a time point as they are: no more fields of it will be predicted."""
        return tuple(
            verdict
            for index, trigger in enumerate(self._triggers)
            if trigger.scope in ("well", "run")
            for key in self._expected.get(time, ())
            for verdict in self._group(index, key, 0.0, close=True)
        )

    def _look(self, index: int, outcome: Outcome, propose_only: Mapping[str, str]) -> bool:
        """Let a trigger see a field, if its models have all answered, and this outcome is of one of them."""
        key, wanted = outcome.info.key, self._triggers[index].measurements
        models = [self._owner(each.first_label) for each in wanted]
        for model, measurement in zip(models, wanted, strict=True):
            if model == outcome.model:
                self._cache.measure(outcome, measurement)  # now: its images are not kept
        answers = [self._answers.get((key, model)) for model in models if model is not None]
        there = [each for each in answers if each is not None and not isinstance(each, Unpredicted)]
        if outcome.model not in models or len(there) < len(models):
            return False
        doubts = [unlike_training(each) for each in there]
        doubts += [propose_only.get(label, "") for each in wanted for label in each.labels]
        doubt = next(filter(None, doubts), "")
        missing = next((each for each in there if not isinstance(each, Prediction)), None)
        pairs = zip(wanted, there, strict=True)
        values = None if missing else {m: self._cache.measure(each, m) for m, each in pairs}
        self._seen[index, key] = _Seen(missing or _light(outcome), values, doubt)
        return True

    def _on_field(self, index: int, key: StackKey, age_s: float) -> Verdict:
        """On one field, or its objects."""
        trigger, seen = self._triggers[index], self._seen[index, key]
        if seen.values is None:
            return Verdict(index, decide(trigger, seen.outcome, None, self.fired[index]), "nothing")
        objects: tuple[FoundObject, ...] = ()
        if trigger.scope == "object":
            found, objects = self._objects(trigger, key, seen.values)
        else:
            found = self._evaluate(index, key.position, seen.values)
        decision = decide(trigger, seen.outcome, found, self.fired[index])
        return self._weigh(index, replace(decision, objects=objects), seen.doubt, age_s)

    def _objects(
        self, trigger: Trigger, key: StackKey, values: Values
    ) -> tuple[Evaluation, tuple[FoundObject, ...]]:
        """Whether any object passes, and which do."""
        found = {m: {each.number: each for each in self._cache.objects(key, m)} for m in trigger.measurements}
        first = found[trigger.measurements[0]]
        passed = []
        for number, each in first.items():
            own = {
                m: Measured(m.title, objects[number].value, m.measured_in.name, math.nan)
                for m, objects in found.items()
            }
            if evaluate(trigger.when, own)[0].holds:
                passed.append(each)
        passed.sort(key=lambda each: -each.value)
        why = f"{len(passed)} of {len(first)} objects: {describe(trigger.when)}"
        measured = tuple(each for each in values.values() if each is not None)
        return Evaluation(bool(passed), why, measured), tuple(passed)

    def _group(self, index: int, key: StackKey, age_s: float, *, close: bool = False) -> Iterator[Verdict]:
        """On all fields of a well or run, once they are there."""
        trigger = self._triggers[index]
        whole = trigger.scope == "run"
        place = "run" if whole else well_name(key.position)
        fields = self._expected.get(key.time, (key,))
        members = [each for each in fields if whole or well_name(each.position) == place]
        seen = {each: self._seen[index, each] for each in members if (index, each) in self._seen}
        if (index, key.time, place) in self._closed or not (close or len(seen) == len(members)):
            return
        self._closed.add((index, key.time, place))
        known = {each: one.values for each, one in seen.items() if one.values and _is_known(one.values)}
        named = "the run" if whole else named_well(key.position)
        if len(known) < max(trigger.require * len(members) - _ROUNDING, 1):
            missing = f"{len(members) - len(known)} of {len(members)} fields"
            predicted = sum(one.values is not None for one in seen.values())
            what = "predicted" if predicted < len(members) else "measured"
            why = f"No decision: {missing} of {named} are not {what}."
            yield Verdict(index, hold_back(trigger, key, why), "nothing")
            return
        values = {
            m: _summary(trigger, m, [v[m] for v in known.values()], named) for m in trigger.measurements
        }
        found = self._evaluate(index, place, values)
        at = _most_concerned(trigger, known)  # a decision on several fields is carried out at one of them
        doubt = next(filter(None, (one.doubt for one in seen.values())), "")
        yield self._weigh(index, conclude(trigger, at, found, self.fired[index]), doubt, age_s)

    def _evaluate(self, index: int, place: str, values: Values) -> Evaluation:
        found, memory = evaluate(self._triggers[index].when, values, self.memories.get((index, place)))
        self.memories[index, place] = memory
        return found

    def _weigh(self, index: int, decision: Decision, doubt: str, age_s: float) -> Verdict:
        deadline_s = self._triggers[index].deadline_s
        if decision.action is None:
            return Verdict(index, decision, "nothing")
        if doubt:
            return Verdict(index, decision, "proposed", doubt)
        if deadline_s is not None and age_s > deadline_s:
            return Verdict(index, decision, "late", explain_late(age_s, deadline_s))
        self.fired[index] += 1
        return Verdict(index, decision, "act")


def _is_known(values: Values) -> bool:
    """Whether a field has a number of everything that is measured."""
    return all(each is not None and math.isfinite(each.value) for each in values.values())


def _light(outcome: Outcome) -> Outcome:
    """An outcome without its images."""
    return (
        outcome
        if not isinstance(outcome, Prediction)
        else replace(outcome, mean=outcome.mean[:, :0, :0], spread=outcome.spread[:, :0, :0])
    )


def _summary(
    trigger: Trigger, measurement: Measurement, fields: Sequence[Measured | None], named: str
) -> Measured | None:
    known = [each for each in fields if each is not None and math.isfinite(each.value)]
    if not known:
        return None
    value = summarise(trigger.statistic, [each.value for each in known])
    doubt = _doubt(trigger.statistic, [each.doubt for each in known])
    whole = write_down(measurement, value, doubt)
    return replace(whole, text=f"{whole.text} ({trigger.statistic} of {len(known)} fields of {named})")


def _doubt(statistic: Statistic, doubts: Sequence[float]) -> float:
    """One SD of a sum or mean of values whose doubts are unrelated; of others it is not known."""
    if statistic not in ("mean", "sum"):
        return math.nan
    return math.hypot(*doubts) / (len(doubts) if statistic == "mean" else 1)


def _most_concerned(trigger: Trigger, fields: Mapping[StackKey, Values]) -> StackKey:
    """Of the fields that meet the condition by themselves, or of all if none does, the most extreme one."""
    first = trigger.thresholds[0]
    own = [key for key, values in fields.items() if evaluate(trigger.when, values)[0].holds]

    def strength(key: StackKey) -> float:
        found = fields[key][first.measurement]
        value = found.value if found is not None and math.isfinite(found.value) else -math.inf
        return -value if first.side == "below" else value

    return max(own or fields, key=strength)


def unlike_training(outcome: Outcome) -> str:
    """In what a predicted stack lies beyond the limits of the model's gate, for people; empty if in none."""
    if not isinstance(outcome, Prediction):
        return ""
    beyond = [each for each in outcome.distances if each.beyond]
    named = ", ".join(f"{each.name} {each.value:.3g} (limit {each.limit:.3g})" for each in beyond)
    return f"the stack looks unlike the model's training set: {named}" if beyond else ""


def explain_late(age_s: float, deadline_s: float) -> str:
    return f"too late, {age_s:.1f} s after the field's last slice; the deadline is {deadline_s:g} s"
