"""Measurements over time: curves of fields and wells, thinned for drawing."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.rules.series import ALL_FIELDS, CurveBook, Point, combine, thin, well_of

NAN = math.nan


def point(time: int, value: float, doubt: float = 1.0, why: str = "") -> Point:
    return Point(time, 60.0 * time, value, doubt, why=why)


@pytest.mark.parametrize(
    "position, well", [("A1_003", ("A", "1")), ("H12", ("H", "12")), ("B02 left", ("B", "2")), ("p3", None)]
)
def test_a_position_is_in_the_well_that_it_is_named_after(position: str, well: object) -> None:
    assert well_of(position) == well


def test_a_curve_has_one_point_a_time_and_the_last_word_counts() -> None:
    book = CurveBook()
    book.add("p1", "count", "objects", point(1, NAN, NAN, "waits"))
    book.add("p1", "count", "objects", point(0, 5.0))
    book.add("p1", "count", "objects", point(1, 7.0))
    (curve,) = book.curves()
    assert [one.value for one in curve.points] == [5.0, 7.0] and curve.level == "field"


def test_wells_stand_for_their_fields() -> None:
    book = CurveBook()
    for position, value in (("A1_1", 2.0), ("A1_2", 4.0), ("B1_1", 9.0)):
        book.add(position, "count", "objects", point(0, value))
    wells = [curve for curve in book.curves() if curve.level == "well"]
    assert [(one.place, one.points[0].value, one.points[0].fields) for one in wells] == [("A1", 3.0, 2)]
    assert {curve.place for curve in book.changed()} == {"A1_1", "A1_2", "B1_1", "A1"}
    assert book.changed() == ()
    book.add("A1_1", "count", "objects", point(1, 8.0))
    (well,) = (curve for curve in book.changed() if curve.level == "well")
    assert [one.value for one in well.points] == [3.0, 8.0]


def test_fields_without_wells_are_one() -> None:
    book = CurveBook()
    for position in ("p1", "p2"):
        book.add(position, "count", "objects", point(0, 1.0))
    assert ALL_FIELDS in {curve.place for curve in book.curves()}


@pytest.mark.parametrize(
    "points, value, doubt, fields",
    [
        ([point(0, 4.0, 0.5)], 4.0, 0.5, 1),
        ([point(0, 4.0, 3.0), point(0, 4.0, 4.0)], 4.0, 2.5, 2),
        ([point(0, 0.0, 0.1), point(0, 10.0, 0.1)], 5.0, 5.0, 2),
        ([point(0, 4.0, NAN)], 4.0, NAN, 1),
        ([point(0, 4.0), point(0, NAN, NAN, "refused")], 4.0, 1.0, 1),
        ([point(0, NAN, NAN, "refused")], NAN, NAN, 0),
    ],
)
def test_a_mean_is_as_unsure_as_its_fields_or_their_difference(
    points: list[Point], value: float, doubt: float, fields: int
) -> None:
    found = combine(points)
    assert found.fields == fields
    assert [found.value, found.doubt] == pytest.approx([value, doubt], nan_ok=True)


values = st.lists(st.floats(-1e6, 1e6) | st.just(NAN), min_size=1, max_size=2000)


@given(values, st.integers(6, 240))
def test_thinning_keeps_ends_extremes_and_that_something_is_missing(found: list[float], most: int) -> None:
    points = [point(time, value) for time, value in enumerate(found)]
    kept = thin(points, most)
    assert len(kept) <= max(most, 6) + 2 and list(kept) == sorted(kept, key=lambda one: one.time)
    assert kept[0] == points[0] or math.isnan(points[0].value)
    assert kept[-1].time == points[-1].time
    known = [value for value in found if not math.isnan(value)]
    left = [one.value for one in kept if not math.isnan(one.value)]
    if known:
        assert (min(known), max(known)) == (min(left), max(left))
    assert (len(known) < len(found)) == any(math.isnan(one.value) for one in kept)


def test_hundreds_of_fields_and_times_are_kept_and_drawn_thin() -> None:
    book = CurveBook()
    for time in range(500):
        for position in ("p1", "p2"):
            book.add(position, "count", "objects", point(time, float(time % 7)))
        if time % 100 == 0:
            book.changed()
    curves = book.curves()
    assert all(len(one.points) <= 242 and len(one.points) + one.left_out == 500 for one in curves)
    assert statistics.fmean(one.value for one in curves[0].points) < 7
