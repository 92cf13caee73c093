"""What was measured in a run, each once, with the visits of a field in order."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from acq_isl.errors import AcqIslError, ExperimentError
from acq_isl.rules.measurements import Measured, Measurement, measure, write_down
from acq_isl.rules.objects import FoundObject, ObjectShape
from acq_isl.rules.over_time import OverTime, Visit
from acq_isl.rules.user import PythonFunction
from acq_isl.stack import Outcome, Prediction, StackKey

log = logging.getLogger(__name__)

Ask = Callable[[PythonFunction, Prediction], tuple[float, float]]
"""Calls a user's function; AcqIslError if it raises, hangs, or returns nonsense."""


class MeasurementCache:
    """Measurements of a run by field, each made once; owned by the session.

    ``ask`` calls functions of the user's; without it what they measure is not known.
    """

    def __init__(self, ask: Ask | None = None) -> None:
        self._ask = ask
        self._found: dict[tuple[StackKey, Measurement], Measured] = {}
        self._objects: dict[tuple[StackKey, Measurement], tuple[FoundObject, ...]] = {}
        self._visited: dict[tuple[str, str, Measurement], list[StackKey]] = {}
        self._imaged_s: dict[StackKey, float] = {}
        self._problems: dict[str, None] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Labels that rules look at and no prediction had, and measurements that failed."""
        return tuple(self._problems)

    def imaged(self, key: StackKey, at_s: float) -> None:
        """Note when a stack was imaged, in seconds since the run began."""
        self._imaged_s.setdefault(key, at_s)

    def imaged_s(self, key: StackKey) -> float:
        """When a stack was imaged, in seconds since the run began; NaN if that is not known."""
        return self._imaged_s.get(key, np.nan)

    def known(self, key: StackKey, measurement: Measurement) -> Measured | None:
        """What was measured of a stack already."""
        return self._found.get((key, measurement))

    def measure(self, outcome: Outcome, measurement: Measurement) -> Measured | None:
        """What is measured on an outcome; None without a prediction, or without the label in it.

        Of a `Prediction` it is measured once: later calls may come with reduced images.
        """
        if not isinstance(outcome, Prediction):
            return None
        place = (outcome.info.key, measurement)
        if place not in self._found:
            for label in measurement.labels:
                if label not in outcome.labels:
                    # Only a server that was not there at the start can surprise a run with its labels.
                    self._problems[f"the model does not predict {label!r}: no rule can look at it"] = None
                    return None
            try:
                self._found[place] = self._measure(outcome, measurement)
            except AcqIslError as error:
                log.warning("%s", error, exc_info=True)
                self._problems[str(error)] = None
                self._found[place] = Measured(measurement.title, np.nan, measurement.measured_in.name, np.nan)
            key = outcome.info.key
            self._visited.setdefault((key.position, key.channel, measurement), []).append(key)
        return self._found[place]

    def objects(self, key: StackKey, measurement: Measurement) -> tuple[FoundObject, ...]:
        """The objects of a field that was measured, each with its own value; none of other measurements."""
        return self._objects.get((key, measurement), ())

    def _measure(self, prediction: Prediction, measurement: Measurement) -> Measured:
        key = prediction.info.key
        match measurement:
            case OverTime(of=inner):
                now = self.measure(prediction, inner)
                known = now is not None and np.isfinite(now.value)
                value, doubt = measurement.compare(self._visits(key, inner)) if known else (np.nan, np.nan)
                return write_down(measurement, value, doubt)
            case PythonFunction(function=function):
                if self._ask is None:
                    raise ExperimentError(
                        f"{function} was not called: functions of yours measure in a run only",
                        fix="go on with the run: acq-isl run EXPERIMENT --resume RUN",
                    )
                return write_down(measurement, *self._ask(measurement, prediction))
            case ObjectShape():
                found = measure(prediction, measurement)
                self._objects[key, measurement] = measurement.measure_objects(prediction)
                return found
            case _:
                return measure(prediction, measurement)

    def _visits(self, key: StackKey, measurement: Measurement) -> tuple[Visit, ...]:
        """What was measured of a field until now, in order of time."""
        visited = self._visited.get((key.position, key.channel, measurement), ())
        keys = sorted(other for other in visited if other.time <= key.time)
        found = [(other, self._found[other, measurement]) for other in keys]
        return tuple(Visit(self.imaged_s(k), each.value, each.doubt) for k, each in found)
