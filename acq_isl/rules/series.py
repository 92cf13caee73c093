"""Measurements over time, for each field and well, with their doubt. Pure."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

MOST_POINTS = 240
"""Of a curve that is drawn: more cannot be told apart on a screen."""
ALL_FIELDS = "all fields"
"""What the fields of a run without wells are together."""
_ROOM = 3 * MOST_POINTS
_LEAST_POINTS, _ALL_POINTS = 24, 50_000  # of a curve where there are thousands of curves; of all together
# Rows A to AF and columns 1 to 48 are those of a plate with 1536 wells.
_WELL = re.compile(r"([A-Z]|A[A-F])(0?[1-9]|[1-3]\d|4[0-8])(?:[_\- ].*)?")
_Words = Annotated[str, Field(max_length=1024)]


def well_of(position: str) -> tuple[str, str] | None:
    """Row and column of a position named as wells are, such as ``A1_003``; None of any other."""
    found = _WELL.fullmatch(position)
    return (found[1], found[2].lstrip("0")) if found else None


@dataclass(frozen=True, slots=True)
class Point:
    """One time point of a curve.

    ``elapsed_s`` is since the run began, ``value`` in the curve's unit with its ``doubt`` (one SD), NaN where
    they are not known, and ``why`` there is no value. A well's is the mean of ``fields``.
    """

    time: int
    elapsed_s: float
    value: float
    doubt: float
    fields: int = 1
    why: _Words = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """A measurement of one place over time; ``left_out`` points are not drawn (`thin`)."""

    level: Literal["field", "well"]
    place: _Words
    name: _Words
    unit: _Words
    points: Annotated[tuple[Point, ...], Field(max_length=_ROOM)]
    left_out: int = 0


class CurveBook:
    """All measurements of a run by place and time; owned by one thread."""

    def __init__(self) -> None:
        self._units: dict[str, str] = {}
        self._fields: dict[tuple[str, str], dict[int, Point]] = {}
        self._wells: dict[str, dict[str, None]] = {}
        self._means: dict[tuple[str, str], dict[int, Point]] = {}
        self._stale: dict[tuple[str, str], set[int]] = {}  # times of which the mean of a well is to be made
        self._changed: dict[tuple[str, str], None] = {}

    def add(self, position: str, name: str, unit: str, point: Point) -> None:
        """What was measured of a field; what was known of that time point before is replaced."""
        self._units[name] = unit
        self._fields.setdefault((name, position), {})[point.time] = point
        self._wells.setdefault(well_name(position), {})[position] = None
        self._stale.setdefault((name, well_name(position)), set()).add(point.time)
        self._changed[name, position] = None

    def changed(self) -> tuple[Curve, ...]:
        """Curves with something new since the last call: of fields, then of their wells."""
        changed, self._changed = self._changed, {}
        wells = dict.fromkeys((name, well_name(position)) for name, position in changed)
        return tuple(self._field(*place) for place in changed) + self._of_wells(wells)

    def curves(self) -> tuple[Curve, ...]:
        """All curves: of wells, where they have several fields, then of fields."""
        wells = dict.fromkeys((name, well_name(position)) for name, position in self._fields)
        return self._of_wells(wells) + tuple(self._field(*place) for place in self._fields)

    def _field(self, name: str, position: str) -> Curve:
        points = [point for _, point in sorted(self._fields[name, position].items())]
        return self._curve("field", position, name, points)

    def _of_wells(self, wells: dict[tuple[str, str], None]) -> tuple[Curve, ...]:
        return tuple(self._well(*place) for place in wells if len(self._wells[place[1]]) > 1)

    def _well(self, name: str, well: str) -> Curve:
        means = self._means.setdefault((name, well), {})
        for time in self._stale.pop((name, well), ()):
            fields = (self._fields.get((name, position), {}) for position in self._wells[well])
            means[time] = combine([field[time] for field in fields if time in field])
        points = [point for _, point in sorted(means.items())]
        return self._curve("well", well, name, points)

    def _curve(self, level: Literal["field", "well"], place: str, name: str, points: list[Point]) -> Curve:
        most = max(_ALL_POINTS // len(self._fields), _LEAST_POINTS)
        drawn = thin(points, min(most, MOST_POINTS))
        return Curve(level, place, name, self._units[name], drawn, len(points) - len(drawn))


def well_name(position: str) -> str:
    """The well of a position, such as ``A1``; a run without wells is one, ``all fields``."""
    return "".join(well_of(position) or (ALL_FIELDS,))


def named_well(position: str) -> str:
    """The same in a sentence, such as ``well A1``."""
    return f"well {name}" if (name := well_name(position)) != ALL_FIELDS else name


def combine(points: Sequence[Point]) -> Point:
    """The mean of fields at one time point.

    Its doubt is what the fields' own doubts make of it (sqrt of the sum of squares over n) or what the fields
    differ by (SD over sqrt(n)), whichever is more.
    """
    known = [point for point in points if math.isfinite(point.value)]
    elapsed_s = statistics.fmean(point.elapsed_s for point in known or points)
    if not known:
        return Point(points[0].time, elapsed_s, math.nan, math.nan, 0, points[0].why)
    values = [point.value for point in known]
    doubts = [math.sqrt(sum(point.doubt**2 for point in known)) / len(known)]
    if len(known) > 1:
        doubts.append(statistics.stdev(values) / math.sqrt(len(known)))
    doubt = max(filter(math.isfinite, doubts), default=math.nan)
    return Point(points[0].time, elapsed_s, statistics.fmean(values), doubt, len(known))


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> tuple[Point, ...]:
    """About ``most`` points that look alike: of each stretch the least, the largest, one that is missing."""
    if len(points) <= most:
        return tuple(points)
    stretch = -(-3 * len(points) // most)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), stretch):
        numbers = range(start, min(start + stretch, len(points)))
        known = [number for number in numbers if math.isfinite(points[number].value)]
        if known:
            kept |= {min(known, key=lambda n: points[n].value), max(known, key=lambda n: points[n].value)}
        kept |= set([number for number in numbers if number not in known][:1])
    return tuple(points[number] for number in sorted(kept))
