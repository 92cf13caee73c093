"""When a rule applies: thresholds and trees of them, evaluated on numbers and on what was before. Pure.

A condition is true, false, or cannot be told, as where something was not measured: then `all` is false if any
part is false, `any` is true if any part is true, and else it cannot be told, which never lets a rule act.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, assert_never

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from acq_isl.base import StrictModel
from acq_isl.rules.measurements import Measured, Measurement, readable
from acq_isl.rules.units import convert

_BY_NAME = ConfigDict(populate_by_name=True)
_Value = Annotated[float, Field(allow_inf_nan=False)]


class Threshold(StrictModel):
    """Passed when the measurement is strictly above or below a value, or between two; give one of these."""

    model_config = _BY_NAME

    measurement: Measurement
    above: _Value | None = None
    """In the measurement's unit, or in ``unit``: objects, or a fraction of 1."""
    below: _Value | None = None
    between: tuple[_Value, _Value] | None = None
    """Least and largest value that pass."""
    unit: str | None = None
    """Unit of the numbers, such as ``um2`` or ``%``; converted if the measurement has another of its kind."""
    visits: int = Field(default=1, ge=1, alias="for")
    """Visits in a row at which it must hold; one without a number neither counts nor breaks the row."""
    hysteresis: float = Field(default=0.0, ge=0)
    """Once passed, it holds until the value has come back by this."""

    @model_validator(mode="after")
    def _one_side(self) -> Threshold:
        given = [side for side in (self.above, self.below, self.between) if side is not None]
        if len(given) != 1:
            raise ValueError("give either 'above' or 'below' or 'between', not several and not none")
        if self.between is not None and not self.between[0] < self.between[1]:
            raise ValueError("between: the smaller value comes first, and they differ")
        if self.unit is not None:
            convert(0.0, self.unit, self.measurement.measured_in)
        return self

    @property
    def side(self) -> Literal["above", "below", "between"]:
        if self.between is not None:
            return "between"
        return "above" if self.above is not None else "below"

    @property
    def value(self) -> float:
        """The threshold, in the measurement's unit; the lower one of two."""
        low, high = self.interval
        return low if math.isfinite(low) else high

    @property
    def interval(self) -> tuple[float, float]:
        """Between which values it passes, in the measurement's unit; infinite where there is no bound."""
        if self.between is not None:
            return self._own(self.between[0]), self._own(self.between[1])
        if self.above is not None:
            return self._own(self.above), math.inf
        return -math.inf, self._own(self.below or 0.0)

    def passed(self, value: float, held: bool = False) -> bool:
        """Whether a value passes, in the measurement's unit; ``held``: at the visit before it did.

        A value that is not a number never does.
        """
        (low, high), back = self.interval, self.own_hysteresis if held else 0.0
        if self.between is not None:
            return low - back <= value <= high + back
        return low - back < value < high + back

    @property
    def own_hysteresis(self) -> float:
        """The hysteresis, in the measurement's unit."""
        return self._own(self.hysteresis)

    @property
    def wanted(self) -> str:
        """What is wanted of the value, for people, such as ``above 10.0 % of the area``."""
        unit, (low, high) = self.measurement.measured_in, self.interval
        if self.between is not None:
            return f"between {unit.write_limit(low)} and {unit.write_limit(high)}"
        return f"{self.side} {unit.write_limit(self.value)}"

    def _own(self, value: float) -> float:
        return value if self.unit is None else convert(value, self.unit, self.measurement.measured_in)


class AllOf(StrictModel):
    """Holds when every one of several conditions does."""

    model_config = _BY_NAME

    all: tuple[Condition, ...] = Field(min_length=1)
    """The conditions."""
    visits: int = Field(default=1, ge=1, alias="for")
    """Visits in a row at which they must hold together."""


class AnyOf(StrictModel):
    """Holds when at least one of several conditions does."""

    model_config = _BY_NAME

    any: tuple[Condition, ...] = Field(min_length=1)
    """The conditions."""
    visits: int = Field(default=1, ge=1, alias="for")
    """Visits in a row at which one must hold."""


class NotThis(StrictModel):
    """Holds when a condition is known not to."""

    model_config = _BY_NAME

    negated: Condition = Field(alias="not")
    """The condition."""


def _tag(raw: Any) -> str:
    keys = raw if isinstance(raw, Mapping) else type(raw).model_fields if isinstance(raw, StrictModel) else ()
    for tag, names in (("all", ("all",)), ("any", ("any",)), ("not", ("not", "negated"))):
        if any(name in keys for name in names):
            return tag
    return "threshold"


Condition = Annotated[
    Annotated[Threshold, Tag("threshold")]
    | Annotated[AllOf, Tag("all")]
    | Annotated[AnyOf, Tag("any")]
    | Annotated[NotThis, Tag("not")],
    Discriminator(_tag),
]
"""A threshold, or a tree of conditions; told apart by the keys ``measurement``, ``all``, ``any``, ``not``."""

for _tree in (AllOf, AnyOf, NotThis):
    _tree.model_rebuild()


@dataclass(frozen=True, slots=True)
class Memory:
    """What a condition knows of the visits before, of one place.

    ``rows`` counts, for each part of the tree that may be wanted for several visits, at how many in a row it
    held; ``held`` says of each whether it did at the last. Parts are numbered as `walk` goes.
    """

    rows: tuple[int, ...] = ()
    held: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Whether a condition holds (None: it cannot be told), why, and the numbers it was seen by."""

    holds: bool | None
    why: str
    measured: tuple[Measured, ...] = ()
    """Of each threshold that had one, in the order of `thresholds`."""


def walk(condition: Condition) -> Iterator[Condition]:
    """A condition and all of its parts, each before its own parts."""
    yield condition
    match condition:
        case AllOf(all=parts) | AnyOf(any=parts):
            for part in parts:
                yield from walk(part)
        case NotThis(negated=part):
            yield from walk(part)
        case Threshold():
            pass
        case _:
            assert_never(condition)


def thresholds(condition: Condition) -> tuple[Threshold, ...]:
    """All thresholds of a condition, as they are written."""
    return tuple(part for part in walk(condition) if isinstance(part, Threshold))


def describe(condition: Condition) -> str:
    """A condition in plain words."""
    match condition:
        case Threshold():
            words = f"{condition.measurement.title} is {condition.wanted}"
            if condition.hysteresis:
                unit = condition.measurement.measured_in
                words += f", and then until it has come back by {unit.write_limit(condition.own_hysteresis)}"
        case AllOf(all=parts):
            words = f"({' and '.join(map(describe, parts))})" if len(parts) > 1 else describe(parts[0])
        case AnyOf(any=parts):
            words = f"({' or '.join(map(describe, parts))})" if len(parts) > 1 else describe(parts[0])
        case NotThis(negated=part):
            return f"it is not so that {describe(part)}"
        case _:
            assert_never(condition)
    return words if condition.visits == 1 else f"{words} at {condition.visits} visits in a row"


def evaluate(
    condition: Condition, values: Mapping[Measurement, Measured | None], memory: Memory | None = None
) -> tuple[Evaluation, Memory]:
    """Whether a condition holds for what was measured now, and what to remember of it for the next visit."""
    look = _Look(condition, values, memory or Memory())
    holds, why = look.at(condition)
    return Evaluation(holds, why, tuple(look.measured)), Memory(tuple(look.rows), tuple(look.held))


class _Look:
    """One look at a tree; parts are numbered in the order in which they are looked at, which is `walk`'s."""

    def __init__(
        self, condition: Condition, values: Mapping[Measurement, Measured | None], memory: Memory
    ) -> None:
        size = sum(1 for _ in walk(condition))
        known = len(memory.rows) == len(memory.held) == size  # else it is of another condition
        self.rows = list(memory.rows) if known else [0] * size
        self.held = list(memory.held) if known else [False] * size
        self.measured: list[Measured] = []
        self._values, self._numbers = values, itertools.count()

    def at(self, part: Condition) -> tuple[bool | None, str]:
        number = next(self._numbers)
        match part:
            case Threshold():
                return self._in_a_row(number, part.visits, *self._threshold(part, self.held[number]))
            case AllOf(all=parts):
                every = [self.at(each) for each in parts]
                now, why = _all([holds for holds, _ in every]), "; and ".join(why for _, why in every)
                return self._in_a_row(number, part.visits, now, why)
            case AnyOf(any=parts):
                every = [self.at(each) for each in parts]
                now = _not(_all([_not(holds) for holds, _ in every]))
                why = "; or ".join(
                    why for holds, why in every if holds or not now
                )  # those that are the reason
                return self._in_a_row(number, part.visits, now, why)
            case NotThis(negated=inner):
                holds, why = self.at(inner)
                return _not(holds), why
            case _:
                assert_never(part)

    def _threshold(self, part: Threshold, held: bool) -> tuple[bool | None, str]:
        found, title = self._values.get(part.measurement), part.measurement.title
        if found is None or not math.isfinite(found.value):
            return None, f"{title} is not known"
        self.measured.append(found)
        now = part.passed(found.value, held)
        still = "still within the hysteresis of " if now and not part.passed(found.value) else ""
        return now, f"{title} is {readable(found)}, {'' if now else 'not '}{still}{part.wanted}"

    def _in_a_row(self, number: int, visits: int, now: bool | None, why: str) -> tuple[bool | None, str]:
        if now is not None:
            self.rows[number], self.held[number] = (self.rows[number] + 1 if now else 0), now
        if visits == 1 or not now:
            return now, why
        done = self.rows[number]
        return done >= visits, f"{why}, at {min(done, visits)} of {visits} visits in a row"


def _all(parts: Sequence[bool | None]) -> bool | None:
    if False in parts:
        return False
    return None if None in parts else True


def _not(holds: bool | None) -> bool | None:
    return None if holds is None else not holds
