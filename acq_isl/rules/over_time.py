"""Measurements that compare the visits of one field with each other. Pure: the visits are an argument."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, WithJsonSchema, model_validator

from acq_isl.rules.measurements import Measurement
from acq_isl.rules.units import RATE, Unit
from acq_isl.stack import Prediction

Inner = Annotated[
    Measurement,
    WithJsonSchema(
        {
            "type": "object",
            "title": "Measurement",
            "properties": {"kind": {"type": "string"}},
            "required": ["kind"],
        }
    ),
]  # the kinds are not spelled out once more: they hold these


@dataclass(frozen=True, slots=True)
class Visit:
    """What was measured at one visit of a field, with one SD, and when, in seconds since the run began."""

    at_s: float
    value: float
    doubt: float


class OverTime(Measurement):
    """What compares the visits of a field; unknown at the first."""

    label: str = ""
    """Is the one of the measurement that is compared."""
    of: Inner
    """The measurement that is compared."""

    @model_validator(mode="after")
    def _flat(self) -> OverTime:
        if isinstance(self.of, OverTime):
            raise ValueError(
                f"{self.kind} of {self.of.kind} cannot be measured; compare what one visit tells"
            )
        if self.label and self.label not in self.of.labels:
            raise ValueError("the label stands in the measurement that is compared: of: {label: ...}")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        return self.of.labels

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        return np.nan, np.nan  # one visit tells nothing

    @abstractmethod
    def compare(self, visits: Sequence[Visit]) -> tuple[float, float]:
        """Value and one SD from all visits until now, in order of time; NaN for what is not known."""


def innermost(measurement: Measurement) -> Measurement:
    """What is measured at a single visit."""
    return measurement.of if isinstance(measurement, OverTime) else measurement


class Change(OverTime):
    """By how much a measurement has changed since an earlier visit of the field."""

    kind: Literal["change"] = "change"
    since: Literal["last", "first"] = "last"
    """Which visit it is compared with."""

    @property
    def measured_in(self) -> Unit:
        own = self.of.measured_in
        return Unit(
            own.name, own.text, own.scale, own.digits, low=own.low - own.high, high=own.high - own.low
        )

    @property
    def title(self) -> str:
        return f"change since the {self.since} visit of {self.of.title}"

    def compare(self, visits: Sequence[Visit]) -> tuple[float, float]:
        known = [visit for visit in visits if np.isfinite(visit.value)]
        if len(known) < 2 or known[-1] is not visits[-1]:
            return np.nan, np.nan
        before, now = known[0 if self.since == "first" else -2], known[-1]
        return now.value - before.value, float(np.hypot(now.doubt, before.doubt))


class GrowthRate(OverTime):
    """Relative growth per hour: slope of the logarithm of a measurement over the last visits of the field.

    By least squares; ln 2 = 0.69 divided by it is the doubling time.
    """

    unit = RATE
    kind: Literal["growth_rate"] = "growth_rate"
    visits: int = Field(default=3, ge=2)
    """Over how many visits, the present one included; over fewer while there are not so many."""

    @property
    def title(self) -> str:
        return f"growth rate of {self.of.title}"

    def compare(self, visits: Sequence[Visit]) -> tuple[float, float]:
        known = [v for v in visits if np.isfinite(v.at_s) and v.value > 0][-self.visits :]
        if len(known) < 2 or known[-1] is not visits[-1]:
            return np.nan, np.nan
        hours = np.array([visit.at_s for visit in known]) / 3600
        values, doubts = (np.array([getattr(v, name) for v in known]) for name in ("value", "doubt"))
        away = hours - hours.mean()
        square = float(away @ away)
        if square == 0:
            return np.nan, np.nan
        return float(away @ np.log(values)) / square, float(
            np.sqrt(np.sum((away * doubts / values) ** 2))
        ) / square
