"""Whether functions and segmenters that rules name are there: found without the microscope."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from acq_isl.errors import AcqIslError
from acq_isl.experiment.experiment import Experiment
from acq_isl.hooks import UserMeasurements, check_function
from acq_isl.rules import Measurement
from acq_isl.rules.actions import NeedsFunction
from acq_isl.rules.lint import Lint
from acq_isl.rules.measurements import ObjectMeasurement
from acq_isl.rules.over_time import innermost
from acq_isl.rules.user import PythonFunction
from acq_isl.session.checks import told


def lint_functions(experiment: Experiment) -> Iterator[Lint]:
    """What cannot be imported or called, by its key. Modules of the user's are imported."""
    for number, trigger in enumerate(experiment.triggers):
        for need in trigger.do.needs():
            if isinstance(need, NeedsFunction):
                check = partial(check_function, need.name, need.arguments, experiment.folder)
                yield from _lint(f"triggers.{number}.do.function", check)
    places: dict[Measurement, str] = {}
    for number, trigger in enumerate(experiment.triggers):
        _place(places, f"triggers.{number}.when", trigger.measurements)
    for key, rule in (("choose", experiment.choose), ("schedule", experiment.schedule)):
        _place(places, key, () if rule is None else rule.measurements)
    with UserMeasurements(experiment.folder) as functions:
        for measurement, key in places.items():
            if isinstance(measurement, PythonFunction):
                yield from _lint(key, partial(functions.check, measurement))
            elif isinstance(measurement, ObjectMeasurement):
                yield from _lint(key, measurement.objects_by.check)


def _place(places: dict[Measurement, str], key: str, measurements: Sequence[Measurement]) -> None:
    for measurement in measurements:
        places.setdefault(innermost(measurement), key)


def _lint(key: str, check: Callable[[], None]) -> Iterator[Lint]:
    try:
        check()
    except AcqIslError as error:
        yield told(key, error)
