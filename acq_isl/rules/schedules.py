"""Which fields of a time-lapse are imaged at which time point. Pure: what is known of them is an argument.

At the first time point all fields are due, in the order planned: nothing is known of them yet.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from acq_isl.base import StrictModel
from acq_isl.rules.cache import MeasurementCache
from acq_isl.rules.conditions import Condition, Evaluation, Memory, describe, evaluate, thresholds
from acq_isl.rules.measurements import Measured, Measurement
from acq_isl.stack import StackKey, StackRequest

_EARLY = 0.02  # of an interval: time points never come to the millisecond


@dataclass(frozen=True, slots=True)
class FieldSoFar:
    """What a schedule knows of a field: how often it was imaged, when last, and what was measured then."""

    position: str
    visits: int = 0
    last_s: float = math.nan
    skipped: int = 0
    """Time points since then."""
    measured: Mapping[Measurement, Measured | None] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    """Of the schedule's condition, before that visit."""

    def judge(self, condition: Condition) -> Evaluation:
        """Whether a condition held at the last visit."""
        return evaluate(condition, self.measured, self.memory)[0]


@dataclass(frozen=True, slots=True)
class Turn:
    """Whether a field is imaged at a time point, and why."""

    position: str
    due: bool
    why: str


class _Schedule(StrictModel):
    @property
    @abstractmethod
    def title(self) -> str:
        """Which fields are imaged when, for people."""

    @property
    def condition(self) -> Condition | None:
        """What it asks of a field, if it asks anything."""
        return None

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """What it looks at, each once."""
        seen = thresholds(self.condition) if self.condition is not None else ()
        return tuple(dict.fromkeys(threshold.measurement for threshold in seen))

    @abstractmethod
    def order(self, fields: Sequence[FieldSoFar], now_s: float, field_s: float) -> list[Turn]:
        """All fields, those that are due first, in the order in which they are imaged.

        ``now_s`` is on the clock of ``FieldSoFar.last_s``; ``field_s`` is how long one field takes.
        """


class RevisitWhen(_Schedule):
    """A field is imaged again where a condition held at its last visit; others only now and then."""

    kind: Literal["when"] = "when"
    when: Condition
    """What must have held at its last visit."""
    else_every: int = Field(default=0, ge=0)
    """All other fields are imaged at every so manieth time point; 0: never again."""

    @property
    def title(self) -> str:
        rest = f"others once in {self.else_every} time points" if self.else_every else "others never again"
        return f"a field is imaged again while {describe(self.when)}; {rest}"

    @property
    def condition(self) -> Condition | None:
        return self.when

    def order(self, fields: Sequence[FieldSoFar], now_s: float, field_s: float) -> list[Turn]:
        return _due_first([self._look(each) for each in fields])

    def _look(self, each: FieldSoFar) -> Turn:
        if not each.visits:
            return Turn(each.position, True, "it was not imaged yet")
        verdict = each.judge(self.when)
        if verdict.holds:
            return Turn(each.position, True, f"at its last visit {verdict.why}")
        if verdict.holds is None:
            return Turn(each.position, True, f"nothing can be told from its last visit: {verdict.why}")
        if self.else_every and each.skipped + 1 >= self.else_every:
            return Turn(each.position, True, f"it is looked at every {self.else_every} time points")
        return Turn(each.position, False, f"at its last visit {verdict.why}")


class TimeBudget(_Schedule):
    """At each time point as many fields as fit into a time, those first that measured highest (or lowest)."""

    kind: Literal["budget"] = "budget"
    time_s: float = Field(gt=0)
    """For the stacks of one time point, in seconds."""
    measurement: Measurement
    descending: bool = True
    """True for the highest values first, False for the lowest."""
    at_least_every: int = Field(default=0, ge=0)
    """Whatever it measured, a field comes first once it was left out at so many time points; 0: never."""

    @property
    def title(self) -> str:
        side = "highest" if self.descending else "lowest"
        late = f", or left out {self.at_least_every} times" if self.at_least_every else ""
        return f"as many fields as fit into {self.time_s:g} s, {side} first in {self.measurement.title}{late}"

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        return (self.measurement,)

    def order(self, fields: Sequence[FieldSoFar], now_s: float, field_s: float) -> list[Turn]:
        most = max(int(self.time_s / field_s), 1) if field_s > 0 else len(fields)
        sign = -1 if self.descending else 1

        def turn(each: FieldSoFar) -> tuple[int, float]:
            found = each.measured.get(self.measurement)
            if not each.visits or (self.at_least_every and each.skipped >= self.at_least_every):
                return 0, -each.skipped
            if found is None or not math.isfinite(found.value):
                return 1, -each.skipped
            return 2, sign * found.value

        why = f"{most} fields of {field_s:.1f} s fit into {self.time_s:g} s"
        return [
            Turn(each.position, place < most, f"number {place + 1} in {self.measurement.title}; {why}")
            for place, each in enumerate(sorted(fields, key=turn))
        ]


class Queue(_Schedule):
    """Each field has a deadline after its last visit; at each time point the most urgent ones are imaged."""

    kind: Literal["queue"] = "queue"
    fields: int = Field(ge=1)
    """How many are imaged at each time point."""
    within_s: float = Field(gt=0)
    """Deadline: how long after its last visit a field is due again, in seconds."""
    urgent: Condition | None = None
    """Fields where this held at their last visit have the deadline ``urgent_within_s`` instead."""
    urgent_within_s: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _together(self) -> Queue:
        if (self.urgent is None) != (self.urgent_within_s is None):
            raise ValueError("give both 'urgent' and 'urgent_within_s', or neither")
        return self

    @property
    def title(self) -> str:
        urgent = f" ({self.urgent_within_s:g} s where {describe(self.urgent)})" if self.urgent else ""
        deadline = f"{self.within_s:g} s after their last visit{urgent}"
        return f"at each time point the {self.fields} fields whose deadline, {deadline}, comes first"

    @property
    def condition(self) -> Condition | None:
        return self.urgent

    def order(self, fields: Sequence[FieldSoFar], now_s: float, field_s: float) -> list[Turn]:
        def deadline_s(each: FieldSoFar) -> float:
            if not each.visits or not math.isfinite(each.last_s):
                return -math.inf
            hurry = self.urgent is not None and each.judge(self.urgent).holds
            return each.last_s + ((self.urgent_within_s or 0.0) if hurry else self.within_s)

        found = []
        for place, each in enumerate(sorted(fields, key=deadline_s)):
            left_s = deadline_s(each) - now_s
            when = "it was not imaged yet" if left_s == -math.inf else f"its deadline is in {left_s:.0f} s"
            when = f"its deadline was {-left_s:.0f} s ago" if -math.inf < left_s < 0 else when
            found.append(Turn(each.position, place < self.fields, f"number {place + 1} in the queue: {when}"))
        return found


class Rate(_Schedule):
    """Each field so many times an hour; fields where a condition holds, at another rate."""

    kind: Literal["rate"] = "rate"
    per_h: float = Field(gt=0)
    """Visits of a field per hour, at most; the time points of the overview are the finest there is."""
    when: Condition | None = None
    """Fields where this held at their last visit have the rate ``then_per_h`` instead."""
    then_per_h: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _together(self) -> Rate:
        if (self.when is None) != (self.then_per_h is None):
            raise ValueError("give both 'when' and 'then_per_h', or neither")
        return self

    @property
    def title(self) -> str:
        words = f"each field {self.per_h:g} times an hour"
        return (
            words if self.when is None else f"{words}, {self.then_per_h:g} times where {describe(self.when)}"
        )

    @property
    def condition(self) -> Condition | None:
        return self.when

    def order(self, fields: Sequence[FieldSoFar], now_s: float, field_s: float) -> list[Turn]:
        return _due_first([self._look(each, now_s) for each in fields])

    def _look(self, each: FieldSoFar, now_s: float) -> Turn:
        if not each.visits or not math.isfinite(each.last_s):
            return Turn(each.position, True, "it was not imaged yet")
        verdict = each.judge(self.when) if self.when is not None else None
        rate = (self.then_per_h or 0.0) if verdict is not None and verdict.holds else self.per_h
        since_s, every_s = now_s - each.last_s, 3600 / rate
        why = f"{since_s:.0f} s since its last visit, {rate:g} an hour wanted"
        if verdict is not None and verdict.holds:
            why += f", as {verdict.why}"
        return Turn(each.position, since_s >= every_s * (1 - _EARLY), why)


Schedule = Annotated[RevisitWhen | TimeBudget | Queue | Rate, Field(discriminator="kind")]


def _due_first(fields: Sequence[Turn]) -> list[Turn]:
    return sorted(fields, key=lambda each: not each.due)


class Rota:
    """Carries a schedule out from time point to time point; owned by the session.

    ``cache`` knows what was measured of every stack, and when it was imaged.
    """

    def __init__(self, schedule: Schedule | None, cache: MeasurementCache) -> None:
        self._schedule, self._cache = schedule, cache
        self._fields: dict[str, FieldSoFar] = {}
        self._last: dict[str, tuple[StackKey, ...]] = {}
        self._picked_s: dict[str, float] = {}

    def visited(self, key: StackKey) -> None:
        """Note that a stack was planned at its time point, and imaged."""
        before, last = (
            self._fields.get(key.position, FieldSoFar(key.position)),
            self._last.get(key.position, ()),
        )
        again = bool(last) and last[0].time == key.time  # another channel of the same visit
        self._last[key.position] = (*last, key) if again else (key,)
        if not again:
            memory = before.memory
            if self._schedule is not None and (condition := self._schedule.condition) is not None:
                memory = evaluate(condition, self._measured(last), memory)[1] if last else memory
            self._fields[key.position] = replace(before, visits=before.visits + 1, skipped=0, memory=memory)

    def pick(
        self, requests: Sequence[StackRequest], now_s: float
    ) -> tuple[tuple[StackRequest, ...], tuple[Turn, ...]]:
        """Of stacks planned for a time point those that are due, in order, and what is said of each field."""
        if self._schedule is None:
            return tuple(requests), ()
        positions = dict.fromkeys(request.key.position for request in requests)
        fields = [self._so_far(position) for position in positions]
        order = self._schedule.order(fields, now_s, self._field_s(requests))
        if not any(each.visits for each in fields):  # the first time: in the order that was planned
            order = [Turn(position, True, "it was not imaged yet") for position in positions]
        due = [each.position for each in order if each.due]
        # Not when each was imaged: its place within the time point must not make it late or early.
        self._picked_s |= dict.fromkeys(due, now_s)
        for each in order:
            if not each.due:
                before = self._fields.get(each.position, FieldSoFar(each.position))
                self._fields[each.position] = replace(before, skipped=before.skipped + 1)
        picked = tuple(
            request for position in due for request in requests if request.key.position == position
        )
        return picked, tuple(order)

    def _so_far(self, position: str) -> FieldSoFar:
        last = self._last.get(position, ())
        at_s = self._picked_s.get(position, self._cache.imaged_s(last[0]) if last else math.nan)
        field = self._fields.get(position, FieldSoFar(position))
        return replace(field, last_s=at_s, measured=self._measured(last))

    def _measured(self, keys: Sequence[StackKey]) -> dict[Measurement, Measured | None]:
        wanted = self._schedule.measurements if self._schedule is not None else ()
        return {m: next(filter(None, (self._cache.known(key, m) for key in keys)), None) for m in wanted}

    def _field_s(self, requests: Sequence[StackRequest]) -> float:
        """How long a field takes: from one to the next at its last time point, at first its light alone."""
        newest = max((keys[0].time for keys in self._last.values()), default=-1)
        times = sorted(
            self._cache.imaged_s(keys[0]) for keys in self._last.values() if keys[0].time == newest
        )
        if len(times) > 1 and math.isfinite(times[-1]):
            return (times[-1] - times[0]) / (len(times) - 1)
        fields = len({request.key.position for request in requests})
        return sum(len(each.z_um) * each.exposure_ms for each in requests) / 1e3 / max(fields, 1)
