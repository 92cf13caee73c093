from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from acq_isl.rules import MeanIntensity, Schedule
from acq_isl.rules.cache import MeasurementCache
from acq_isl.rules.schedules import Rota
from acq_isl.stack import Prediction, StackInfo, StackKey, StackRequest

READ: TypeAdapter[Schedule] = TypeAdapter(Schedule)
BRIGHT = {"measurement": {"kind": "mean_intensity", "label": "a"}, "above": 0.5}
NAMES = ("p0", "p1", "p2", "p3")
EXAMPLES: list[dict[str, Any]] = [
    {"kind": "when", "when": BRIGHT},
    {"kind": "when", "when": {**BRIGHT, "for": 2}, "else_every": 3},
    {"kind": "budget", "time_s": 25, "measurement": BRIGHT["measurement"]},
    {"kind": "queue", "fields": 2, "within_s": 100},
    {"kind": "rate", "per_h": 30, "when": BRIGHT, "then_per_h": 60},
]


class Lapse:
    """A time-lapse of four fields every 60 s; each takes 10 s."""

    def __init__(self, written: dict[str, Any]) -> None:
        self.cache = MeasurementCache()
        self.rota = Rota(READ.validate_python(written), self.cache)
        self.time = 0

    def step(self, *levels: float) -> list[str]:
        """The fields imaged at the next time point, which are as bright as is said of each."""
        requests = [
            StackRequest(StackKey(self.time, name, "Phase"), 0, 0, (0.0,), "Channel", "Phase", 10.0)
            for name in NAMES
        ]
        picked, _ = self.rota.pick(requests, self.time * 60.0)
        for number, request in enumerate(picked):
            self.cache.imaged(request.key, self.time * 60.0 + 10 * number)
            self.rota.visited(request.key)
            level = levels[NAMES.index(request.key.position)]
            mean = np.full((1, 4, 4), level, np.float32)
            info = StackInfo(request.key, (0.0,), (4, 4), 0.5)
            self.cache.measure(Prediction(info, ("a",), mean, mean, "", "", ""), MeanIntensity(label="a"))
        self.time += 1
        return [request.key.position for request in picked]


def course(written: dict[str, Any], *levels: tuple[float, ...]) -> list[list[str]]:
    lapse = Lapse(written)
    return [lapse.step(*each) for each in levels]


ALL, DARK = list(NAMES), (0.1, 0.1, 0.1, 0.1)
ONE = (0.1, 0.9, 0.1, 0.1)


@pytest.mark.parametrize(
    "written, levels, imaged",
    [
        (EXAMPLES[0], [ONE, ONE, DARK, DARK], [ALL, ["p1"], ["p1"], []]),
        (EXAMPLES[1], [ONE, ONE, ONE, ONE, ONE], [ALL, [], [], ALL, ["p1"]]),
        (EXAMPLES[2], [(0.1, 0.4, 0.3, 0.2)] * 3, [ALL, ["p1", "p2"], ["p1", "p2"]]),
        ({**EXAMPLES[2], "at_least_every": 2}, [(0.1, 0.4, 0.3, 0.2)] * 4,
         [ALL, ["p1", "p2"], ["p1", "p2"], ["p0", "p3"]]),
        ({**EXAMPLES[2], "descending": False}, [(0.1, 0.4, 0.3, 0.2)] * 2, [ALL, ["p0", "p3"]]),
        (EXAMPLES[3], [DARK] * 4, [ALL, ["p0", "p1"], ["p2", "p3"], ["p0", "p1"]]),
        ({**EXAMPLES[3], "fields": 1, "urgent": BRIGHT, "urgent_within_s": 1}, [ONE] * 4,
         [ALL, ["p1"], ["p1"], ["p0"]]),
        (EXAMPLES[4], [ONE] * 4, [ALL, ["p1"], ["p0", "p1", "p2", "p3"], ["p1"]]),
    ],
)  # fmt: skip
def test_fields_are_imaged_when_they_are_due(
    written: dict[str, Any], levels: list[tuple[float, ...]], imaged: list[list[str]]
) -> None:
    found = course(written, *levels)
    assert [sorted(each) for each in found] == [sorted(each) for each in imaged]


def test_without_a_schedule_all_fields_are_imaged() -> None:
    request = StackRequest(StackKey(0, "p0", "Phase"), 0, 0, (0.0,), "Channel", "Phase", 10.0)
    assert Rota(None, MeasurementCache()).pick([request], 0.0) == ((request,), ())


@settings(max_examples=40)
@given(st.sampled_from(EXAMPLES), st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=6))
def test_no_field_is_invented_or_imaged_twice_and_the_same_again_is_the_same(
    written: dict[str, Any], levels: list[tuple[float, float, float, float]]
) -> None:
    found = course(written, *levels)
    assert found[0] == ALL
    assert all(len(set(each)) == len(each) and set(each) <= set(NAMES) for each in found)
    assert course(written, *levels) == found


def test_every_field_is_explained() -> None:
    lapse = Lapse(EXAMPLES[0])
    lapse.step(*ONE)
    requests = [
        StackRequest(StackKey(1, name, "Phase"), 0, 0, (0.0,), "Channel", "Phase", 10.0) for name in NAMES
    ]
    _, said = lapse.rota.pick(requests, 60.0)
    assert {each.position: each.due for each in said} == {"p0": False, "p1": True, "p2": False, "p3": False}
    assert said[0].why.startswith("at its last visit mean intensity of a (predicted) is 0.900 ± ")


@pytest.mark.parametrize("written", EXAMPLES)
def test_schedules_are_read_back_and_say_what_they_do(written: dict[str, Any]) -> None:
    schedule = READ.validate_python(written)
    assert READ.validate_python(schedule.model_dump(mode="json", by_alias=True)) == schedule
    assert schedule.title


@pytest.mark.parametrize(
    "written, says",
    [
        ({"kind": "queue", "fields": 1, "within_s": 9, "urgent": BRIGHT}, "both 'urgent' and"),
        ({"kind": "rate", "per_h": 1, "then_per_h": 2}, "both 'when' and"),
        ({"kind": "rate", "per_h": 0}, "greater than 0"),
        ({"kind": "sometimes"}, "'when', 'budget', 'queue', 'rate'"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(written: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        READ.validate_python(written)
