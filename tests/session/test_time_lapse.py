"""A run over time: its table, its curves, and what is told of drift."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from acq_isl import events
from acq_isl.experiment.planning import Cycle
from acq_isl.rules import ObjectCount
from acq_isl.rules.measurements import Measured
from acq_isl.session.time_lapse import DRIFT, FOCUS, TimeLapse
from acq_isl.stack import Autofocus, StackKey, StackRequest, StageTimes
from acq_isl.storage.measurement_table import FILE, read_table

RULE = ObjectCount(kind="object_count", label="nuclei")
SIDE = 160


def request(time: int, position: str, **changes: Any) -> StackRequest:
    key = StackKey(time, position, "Phase")
    return replace(StackRequest(key, 1.0, 2.0, (0.0, 1.0, 2.0), "Channel", "Phase", 10.0), **changes)


def plan(times: int, **changes: Any) -> list[Cycle]:
    fields = [[request(time, name, **changes) for name in ("p1", "p2")] for time in range(times)]
    return [Cycle(time, 60.0 * time, tuple(some)) for time, some in enumerate(fields)]


class Run:
    """A time-lapse one can play by hand, a minute a stack."""

    def __init__(self, folder: Path, cycles: list[Cycle]) -> None:
        self.told: list[events.Event] = []
        self.path, self.cycles = folder / FILE, cycles
        self.seconds = itertools.count(1_000_000_000, 60)
        self.lapse = TimeLapse(
            self.told.append, folder, cycles, [(RULE, "")], lambda: float(next(self.seconds))
        )

    def begin(self, time: int) -> None:
        cycle = self.cycles[time]
        self.lapse.handle(events.TimePointBegan(time + 1, len(self.cycles), cycle.start_s, cycle.start_s))

    def image(self, stack: StackRequest, moved: tuple[float, float] = (0.0, 0.0)) -> None:
        cells = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal((SIDE, SIDE)), 3)
        pixels = (1000 + 3000 * ndimage.shift(cells, moved, mode="wrap")).astype(np.uint16)
        seen = events.Seen(stack.key, True, 1, 2, 1, 0.5, (SIDE, SIDE), 0.0, pixels=pixels)
        self.lapse.see(seen)
        self.lapse.handle(events.FieldImaged(stack))

    def predict(self, stack: StackRequest, count: float) -> None:
        found = (Measured(RULE.title, count, "objects", 1.5),)
        self.lapse.handle(
            events.Predicted(stack.key, 1, 2, 0.3, (8, 8), ("nuclei",), found, (), "e", StageTimes())
        )


def test_curves_come_as_the_run_goes_and_the_table_says_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(3))
    with run.lapse:
        for time in range(3):
            run.begin(time)
            for stack in run.cycles[time].requests:
                run.image(stack)
                run.predict(stack, 10.0 + time)
    curves = {(one.place, one.name): one for one in run.told if isinstance(one, events.CurveChanged)}
    values = [point.value for point in curves["all fields", RULE.title].points]
    assert values == [10.0, 11.0, 12.0]
    assert all(point.doubt == 1.5 for point in curves["p1", RULE.title].points)
    rows = read_table(run.path)
    assert [row.value for row in rows if row.position == "p2" and row.measurement == RULE.title] == values
    assert [row.time_point for row in rows if row.state == "time point"] == [0, 1, 2]
    assert {row.value for row in rows if row.measurement == DRIFT} == {0.0}
    assert run.lapse.warnings == []


def test_a_field_that_moves_is_told_once_with_how_far(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(4))
    with run.lapse:
        for time in range(4):
            run.begin(time)
            run.image(run.cycles[time].requests[0], moved=(0.0, 6.0 * time))
    found = [row.value for row in read_table(run.path) if row.measurement == DRIFT]
    assert found == pytest.approx([3.0, 6.0, 9.0], abs=0.3)
    (warning,) = run.lapse.warnings
    assert "p1 drifts: at time point 3" in warning and "6." in warning


def test_the_focus_that_was_found_is_kept(tmp_path: Path) -> None:
    focus = Autofocus("p1", 1.0, due=True)
    run = Run(tmp_path, plan(2, autofocus=focus))
    with run.lapse:
        run.begin(0)
        run.image(request(0, "p1", z_um=(2.5, 3.5, 4.5)))
    assert [row.value for row in read_table(run.path) if row.measurement == FOCUS] == [2.5]


def test_what_is_missing_stands_in_table_and_curve_with_its_reason(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(2))
    one, two = run.cycles[0].requests
    with run.lapse:
        run.begin(0)
        run.image(one)
        run.lapse.handle(events.NotPredicted(one.key, "refused", "out of focus", "look", ""))
        run.lapse.handle(events.FieldFailed(two.key, "skip this stack", "no reflection"))
        assert [point.why for curve in run.lapse.curves for point in curve.points if curve.place == "p1"] == [
            "refused: out of focus"
        ]
        run.predict(one, 5.0)  # it was predicted after all
    fields = {curve.place: curve.points for curve in run.lapse.curves if curve.level == "field"}
    assert fields["p1"][0].value == 5.0 and fields["p1"][0].why == ""
    assert math.isnan(fields["p2"][0].value) and "no reflection" in fields["p2"][0].why
    assert [row.state for row in read_table(run.path)][1:] == ["imaged", "refused", "failed", "predicted"]


def test_a_resumed_run_goes_on_with_table_and_clock(tmp_path: Path) -> None:
    for time in range(2):
        run = Run(tmp_path, plan(2))
        run.seconds = itertools.count(1_000_000_000 + 10_000 * time, 60)
        with run.lapse:
            run.begin(time)
            for stack in run.cycles[time].requests:
                run.image(stack)
                run.predict(stack, 10.0 + time)
    (curve,) = (curve for curve in run.lapse.curves if curve.place == "p1" and curve.name == RULE.title)
    assert [point.value for point in curve.points] == [10.0, 11.0]
    assert 9_000 < curve.points[1].elapsed_s - curve.points[0].elapsed_s < 11_000


def test_one_time_point_has_a_table_and_no_curves(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(1))
    with run.lapse:
        run.begin(0)
        run.image(run.cycles[0].requests[0])
        run.predict(run.cycles[0].requests[0], 4.0)
    assert run.lapse.curves == () and len(read_table(run.path)) == 3
    assert not [one for one in run.told if isinstance(one, events.CurveChanged)]


def test_without_room_for_the_table_the_run_goes_on_and_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path / "gone", plan(2))
    with run.lapse:
        run.begin(0)
        run.predict(run.cycles[0].requests[0], 4.0)
    assert run.lapse.curves and len(run.told) >= 2
    (warning,) = run.lapse.warnings
    assert "measurements cannot be written" in warning


def test_nothing_that_goes_wrong_here_reaches_the_session(tmp_path: Path) -> None:
    run = Run(tmp_path, plan(2))
    with run.lapse:
        run.begin(0)
        stack = run.cycles[0].requests[0]
        for time in range(2):  # a picture that no array holds
            seen = events.Seen(stack.key, True, 1, 2, 1, 0.5, (SIDE, SIDE), 0.0, pixels="no pixels")  # type: ignore[arg-type]
            run.lapse.see(seen)
            run.lapse.handle(events.FieldImaged(replace(stack, key=StackKey(time, "p1", "Phase"))))
        run.predict(stack, 4.0)
    assert len([one for one in run.told if isinstance(one, events.FieldImaged)]) == 2
    assert "not kept from here on" in run.lapse.warnings[0]
