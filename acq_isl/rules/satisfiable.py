"""Whether a condition can hold at all, or can fail: by the intervals of its thresholds. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

from acq_isl.rules.conditions import AllOf, AnyOf, Condition, NotThis, Threshold
from acq_isl.rules.measurements import Measurement

_MOST_TERMS = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """Values from ``low`` to ``high``; ``..._open``: the end itself is not one of them."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = True
    high_open: bool = True

    @property
    def empty(self) -> bool:
        return self.low > self.high or (self.low == self.high and (self.low_open or self.high_open))

    def both(self, other: Interval) -> Interval:
        """What lies in both."""
        low = max((self.low, self.low_open), (other.low, other.low_open))
        high = min((self.high, not self.high_open), (other.high, not other.high_open))
        return Interval(low[0], high[0], low[1], not high[1])


Term = Mapping[Measurement, Interval]


def terms(condition: Condition, wanted: bool = True) -> tuple[Term, ...] | None:
    """The alternatives in which a condition comes out as wanted: of each measurement where it must lie.

    Contradictory ones are left out, so that none means never. None for a tree with too many alternatives.
    """
    found = list(itertools.islice(_terms(condition, wanted), _MOST_TERMS + 1))
    possible = (term for term in found if not any(interval.empty for interval in term.values()))
    return None if len(found) > _MOST_TERMS else tuple(possible)


def within_units(term: Term) -> bool:
    """Whether all of a term lies within what can be measured."""
    for measurement, interval in term.items():
        unit = measurement.measured_in
        if interval.both(Interval(unit.low, unit.high, False, False)).empty:
            return False
    return True


def _terms(condition: Condition, wanted: bool) -> Iterator[Term]:
    match condition:
        case Threshold():
            for interval in _intervals(condition, wanted):
                yield {condition.measurement: interval}
        case NotThis(negated=part):
            yield from _terms(part, not wanted)
        case AllOf(all=parts) | AnyOf(any=parts):
            together = isinstance(condition, AllOf) == wanted
            if not together:
                yield from (term for part in parts for term in _terms(part, wanted))
                return
            few = (tuple(itertools.islice(_terms(part, wanted), _MOST_TERMS + 1)) for part in parts)
            yield from map(_join, itertools.product(*few))
        case _:
            assert_never(condition)


def _intervals(threshold: Threshold, wanted: bool) -> tuple[Interval, ...]:
    low, high = threshold.interval
    closed = threshold.between is not None
    if wanted:
        return (Interval(low, high, not closed, not closed),)
    below = Interval(high=low, high_open=closed)
    above = Interval(low=high, low_open=closed)
    return tuple(each for each in (below, above) if math.isfinite(each.low) or math.isfinite(each.high))


def _join(parts: tuple[Term, ...]) -> Term:
    joined: dict[Measurement, Interval] = {}
    for part in parts:
        for measurement, interval in part.items():
            joined[measurement] = joined[measurement].both(interval) if measurement in joined else interval
    return joined
