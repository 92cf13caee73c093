"""What the rules of a run measure on predictions, each measured once."""

from __future__ import annotations

from collections.abc import Iterable

from acq_isl.record import Measured
from acq_isl.rules.measurements import Measurement, measure
from acq_isl.stack import Outcome, Prediction, StackKey


class Readings:
    """Measurements of a run by field; owned by the session."""

    def __init__(self) -> None:
        self._found: dict[tuple[StackKey, Measurement], Measured] = {}
        self._strange: set[str] = set()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Labels that rules look at and no prediction had."""
        return tuple(f"the model does not predict {one!r}: no rule can look at it" for one in self._strange)

    def all_of(self, prediction: Prediction, measurements: Iterable[Measurement]) -> tuple[Measured, ...]:
        """What is measured on a prediction, as `of`; labels that it has not are left out."""
        found = (self.of(prediction, one) for one in measurements)
        return tuple(one for one in found if one is not None)

    def of(self, outcome: Outcome, measurement: Measurement) -> Measured | None:
        """What is measured on an outcome; None without a prediction, or without the label in it.

        Of a `Prediction` it is measured once: later calls may come with reduced images.
        """
        if not isinstance(outcome, Prediction):
            return None
        place = (outcome.info.key, measurement)
        if place not in self._found:
            if measurement.label not in outcome.labels:
                # Only a server that was not there at the start can surprise a run with its labels.
                self._strange.add(measurement.label)
                return None
            self._found[place] = measure(outcome, measurement)
        return self._found[place]
