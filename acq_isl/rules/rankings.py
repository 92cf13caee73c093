"""Which fields of a time point to go back to: rankings, each choice with its reason. Pure."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray
from pydantic import Discriminator, Field, Tag

from acq_isl.base import StrictModel
from acq_isl.rules.measurements import Measured, Measurement, readable
from acq_isl.rules.series import named_well, well_name
from acq_isl.stack import Outcome, Prediction, Refusal, StackKey, Unpredicted

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a field stands in a ranking, and why; rank 1 is best, None if it cannot be ranked."""

    key: StackKey
    rank: int | None
    chosen: bool
    measured: Measured | None
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A field that can be ranked: what was measured of it, in the order of the rule's measurements."""

    key: StackKey
    measured: tuple[Measured, ...]

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(each.value for each in self.measured)


@dataclass(frozen=True, slots=True)
class Placed:
    """A candidate in its place: whether it is chosen, and why, as ``what (why)``."""

    field: Candidate
    chosen: bool
    why: str
    mind: str = ""


class _Ranking(StrictModel):
    require: float = Field(default=1.0, ge=0, le=1)
    """Share of the fields of a time point that must be ranked; with fewer, nothing is chosen."""

    @property
    @abstractmethod
    def measurements(self) -> tuple[Measurement, ...]:
        """What it looks at; a field of which one of them is not known is not ranked."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What is chosen, for people."""

    @abstractmethod
    def most(self, fields: int, wells: int) -> int:
        """How many of so many fields in so many wells are chosen, at most."""

    @abstractmethod
    def order(self, fields: Sequence[Candidate]) -> list[Placed]:
        """All fields, of which there is at least one, best first; equal ones in the order given."""


class Best(_Ranking):
    """Go back to the fields where a predicted label measures highest (or lowest)."""

    kind: Literal["best"] = "best"
    k: int = Field(ge=1)
    """How many fields."""
    measurement: Measurement
    descending: bool = True
    """True for the highest values, False for the lowest."""

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        return (self.measurement,)

    @property
    def title(self) -> str:
        return f"the {self.k} {'highest' if self.descending else 'lowest'}: {self.measurement.title}"

    def most(self, fields: int, wells: int) -> int:
        return min(self.k, fields)

    def order(self, fields: Sequence[Candidate]) -> list[Placed]:
        ranked = sorted(fields, key=lambda field: field.values[0], reverse=self.descending)
        return [self._place(ranked, place) for place in range(len(ranked))]

    def _place(self, ranked: Sequence[Candidate], place: int) -> Placed:
        field, mind = ranked[place], ""
        why = f"rank {place + 1} of {len(ranked)}, {'highest' if self.descending else 'lowest'} first"
        if place >= self.k:
            why += f"; {self.k} wanted"
        elif self.k < len(ranked):
            own, first_out = field.measured[0], ranked[self.k].measured[0]
            if abs(own.value - first_out.value) < math.hypot(own.doubt, first_out.doubt):
                mind = f" Its lead over rank {self.k + 1}, which was not chosen, is within the doubt."
        return Placed(field, place < self.k, f"{_what(self, field)} ({why})", mind)


class Term(StrictModel):
    """A part of a weighted sum."""

    measurement: Measurement
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Of the value in standard deviations from the mean of all fields; below 0 low values are wanted."""


class Weighted(_Ranking):
    """Go back to the fields where a weighted sum of several measurements is highest.

    Each is taken in standard deviations from the mean over the fields of the time point.
    """

    kind: Literal["weighted"] = "weighted"
    k: int = Field(ge=1)
    """How many fields."""
    terms: tuple[Term, ...] = Field(min_length=1)
    """What is summed."""

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        return tuple(term.measurement for term in self.terms)

    @property
    def title(self) -> str:
        terms = " and ".join(f"{term.measurement.title} (weight {term.weight:g})" for term in self.terms)
        return f"the {self.k} highest in the weighted sum of {terms}"

    def most(self, fields: int, wells: int) -> int:
        return min(self.k, fields)

    def order(self, fields: Sequence[Candidate]) -> list[Placed]:
        scores = _standardised(fields) @ np.array([term.weight for term in self.terms])
        placed = sorted(range(len(fields)), key=lambda n: -scores[n])
        return [
            Placed(fields[n], place < self.k, f"{_what(self, fields[n])} (weighted sum {scores[n]:.2f}, "
                   f"rank {place + 1} of {len(fields)}{'' if place < self.k else f'; {self.k} wanted'})")
            for place, n in enumerate(placed)
        ]  # fmt: skip


class Diverse(_Ranking):
    """Go back to fields that differ: the highest in the first measurement, then each time the most unlike.

    Most unlike is the field whose nearest chosen one lies farthest, by measurements in standard deviations.
    """

    kind: Literal["diverse"] = "diverse"
    k: int = Field(ge=1)
    """How many fields."""
    by: tuple[Measurement, ...] = Field(min_length=1)
    """What they shall differ in."""

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        return self.by

    @property
    def title(self) -> str:
        return f"{self.k} fields that differ most in {' and '.join(each.title for each in self.by)}"

    def most(self, fields: int, wells: int) -> int:
        return min(self.k, fields)

    def order(self, fields: Sequence[Candidate]) -> list[Placed]:
        points = _standardised(fields)
        left = sorted(range(len(fields)), key=lambda n: -fields[n].values[0])
        first = left.pop(0)
        placed = [Placed(fields[first], True, f"{_what(self, fields[first])} (the highest of {len(fields)})")]
        nearest = np.linalg.norm(points - points[first], axis=1)
        while left:
            n = max(left, key=lambda other: nearest[other])
            left.remove(n)
            why = f"{nearest[n]:.2f} SD from the nearest before it, number {len(placed) + 1} of {len(fields)}"
            chosen = len(placed) < self.k
            why += "" if chosen else f"; {self.k} wanted"
            placed.append(Placed(fields[n], chosen, f"{_what(self, fields[n])} ({why})"))
            nearest = np.minimum(nearest, np.linalg.norm(points - points[n], axis=1))
        return placed


class Quota(_Ranking):
    """Go back to the best fields of each well, so that every well is seen."""

    kind: Literal["quota"] = "quota"
    each: int = Field(ge=1)
    """How many fields of a well."""
    k: int | None = Field(default=None, ge=1)
    """How many fields in all, at most; the wells have turns. Default: as many as there are."""
    measurement: Measurement
    descending: bool = True
    """True for the highest values, False for the lowest."""

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        return (self.measurement,)

    @property
    def title(self) -> str:
        most = "" if self.k is None else f", {self.k} in all at most"
        side = "highest" if self.descending else "lowest"
        return f"the {self.each} {side} of each well{most}: {self.measurement.title}"

    def most(self, fields: int, wells: int) -> int:
        return min(self.each * wells, fields, self.k or fields)

    def order(self, fields: Sequence[Candidate]) -> list[Placed]:
        ranked = sorted(fields, key=lambda field: field.values[0], reverse=self.descending)
        turns: list[tuple[int, Candidate]] = []  # how many of its well come before it
        for number, field in enumerate(ranked):
            well = well_name(field.key.position)
            turns.append((sum(well_name(other.key.position) == well for other in ranked[:number]), field))
        turns.sort(key=lambda turn: turn[0])  # stable: within a turn the best first
        most = len(fields) if self.k is None else self.k
        placed = []
        for place, (turn, field) in enumerate(turns):
            chosen = turn < self.each and place < most
            why = f"rank {turn + 1} in {named_well(field.key.position)}"
            if not chosen:
                why += f"; {self.each} of a well wanted" if turn >= self.each else f"; {most} in all wanted"
            placed.append(Placed(field, chosen, f"{_what(self, field)} ({why})"))
        return placed


class Goal(StrictModel):
    """One of two measurements that are wanted high, or low, at the same time."""

    measurement: Measurement
    descending: bool = True
    """True for the highest values, False for the lowest."""


class Pareto(_Ranking):
    """Go back to fields that no other field beats in both of two measurements, then to the next such front.

    Within a front, fields come first whose neighbours in it lie far away (crowding distance of NSGA-II,
    Deb et al., IEEE Trans. Evol. Comput. 6, 182, 2002).
    """

    kind: Literal["pareto"] = "pareto"
    k: int = Field(ge=1)
    """How many fields."""
    goals: tuple[Goal, Goal]
    """What is wanted."""

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        return tuple(goal.measurement for goal in self.goals)

    @property
    def title(self) -> str:
        both = " and ".join(f"{'high' if g.descending else 'low'} {g.measurement.title}" for g in self.goals)
        return f"{self.k} fields that no other beats in both: {both}"

    def most(self, fields: int, wells: int) -> int:
        return min(self.k, fields)

    def order(self, fields: Sequence[Candidate]) -> list[Placed]:
        signs = np.array([1 if goal.descending else -1 for goal in self.goals])
        points = np.array([field.values for field in fields]).reshape(len(fields), 2) * signs
        left, front = list(range(len(fields))), 0
        placed: list[Placed] = []
        while left:
            front += 1
            first = [n for n in left if not any(_beats(points[other], points[n]) for other in left)]
            crowd = _crowding(points[first])
            for n in sorted(first, key=lambda n: -crowd[first.index(n)]):
                chosen = len(placed) < self.k
                why = f"front {front}, " + (
                    "not beaten in both" if front == 1 else "beaten in both by earlier ones"
                )
                why += "" if chosen else f"; {self.k} wanted"
                placed.append(Placed(fields[n], chosen, f"{_what(self, fields[n])} ({why})"))
            left = [n for n in left if n not in first]
        return placed


def _tag(raw: Any) -> str:
    """A ranking without ``kind`` is the best ``k``, as experiments have been written so far."""
    return str(raw.get("kind", "best") if isinstance(raw, Mapping) else getattr(raw, "kind", "best"))


Ranking = Annotated[
    Annotated[Best, Tag("best")]
    | Annotated[Weighted, Tag("weighted")]
    | Annotated[Diverse, Tag("diverse")]
    | Annotated[Quota, Tag("quota")]
    | Annotated[Pareto, Tag("pareto")],
    Discriminator(_tag),
]
Found = Measured | None | Sequence[Measured | None]


def rank(rule: Ranking, fields: Sequence[tuple[Outcome, Found]]) -> tuple[Choice, ...]:
    """Order fields by what a rule looks at, which comes with each, and choose as many as it wants.

    With each field comes what was measured of it, in the order of ``rule.measurements``; the bare one, where
    there is one. Ranked fields come first, best first (equal values in the order given), then those that
    cannot be ranked: refused, not predicted, or measured as not a number. Those are never chosen, and with
    too many of them (``rule.require``) none is.
    """
    ranked: list[Candidate] = []
    unranked = []
    for outcome, found in fields:
        key = outcome.info.key
        measured = tuple(found) if isinstance(found, Sequence) else (found,)
        known = tuple(each for each in measured if each is not None and math.isfinite(each.value))
        if isinstance(outcome, Prediction) and len(known) == len(rule.measurements):
            ranked.append(Candidate(key, known))
        else:
            unranked.append(
                Choice(key, None, False, measured[0] if measured else None, why_unranked(outcome))
            )
    enough = len(ranked) >= rule.require * len(fields) - _ROUNDING
    none = f"{explain_unranked(len(unranked), len(fields))}, so no choice was made"
    choices = []
    for place, placed in enumerate(rule.order(ranked) if ranked else (), start=1):
        word = "Chosen" if placed.chosen and enough else "Not chosen"
        why = f"{placed.why}.{placed.mind}" if enough else f"{none} ({placed.why})."
        chosen = placed.chosen and enough
        choices.append(Choice(placed.field.key, place, chosen, placed.field.measured[0], f"{word}: {why}"))
    return (*choices, *unranked)


def explain_unranked(unranked: int, fields: int) -> str:
    """How many fields of a ranking are not in it, for people."""
    return f"{unranked} of {fields} fields {'was' if unranked == 1 else 'were'} not ranked"


def why_unranked(outcome: Outcome) -> str:
    """Why a field is not ranked, for people."""
    match outcome:
        case Refusal(reason=reason):
            return f"Not ranked: the model refused this stack, {reason.rstrip('.')}."
        case Unpredicted(reason=reason):
            return f"Not ranked: this stack was captured but not predicted, {reason.rstrip('.')}."
        case Prediction():
            return "Not ranked: the measurement gave no number."
        case _:
            assert_never(outcome)


def _what(rule: _Ranking, field: Candidate) -> str:
    titles = (measurement.title for measurement in rule.measurements)
    return ", ".join(f"{t}: {readable(each)}" for t, each in zip(titles, field.measured, strict=True))


def _standardised(fields: Sequence[Candidate]) -> NDArray[np.float64]:
    """Measurements of fields, (field, measurement), in SD from their mean; 0 where all are the same."""
    values = np.array([field.values for field in fields], float)
    away = values - values.mean(axis=0)
    spread = values.std(axis=0)
    return np.asarray(np.divide(away, spread, out=np.zeros_like(away), where=spread > 0))


def _beats(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return bool((a >= b).all() and (a > b).any())


def _crowding(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Crowding distance of each point of a front, (point, 2); infinite at its ends."""
    found = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        span = values[order[-1]] - values[order[0]]
        found[order[[0, -1]]] = np.inf
        if span > 0:
            found[order[1:-1]] += (values[order[2:]] - values[order[:-2]]) / span
    return found
