"""Lines become shapes within a frame."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.processing.chart import Line, draw_chart, ticks

finite = st.floats(-1e9, 1e9)


@given(finite, st.floats(1e-6, 1e9))
def test_ticks_are_few_and_reach_around(low: float, more: float) -> None:
    found = ticks(low, low + more)
    assert 2 <= len(found) <= 9 or more < abs(low) * 1e-5
    assert (found[0] <= low + more * 0.01 and found[-1] >= low + more * 0.99) or more < abs(low) * 1e-5


@given(st.lists(st.tuples(finite | st.just(math.nan), st.floats(0, 1e6) | st.just(math.nan)), max_size=30))
def test_everything_lies_inside_the_frame(values: list[tuple[float, float]]) -> None:
    x_s = tuple(10.0 * number for number in range(len(values)))
    line = Line("p", x_s, tuple(y for y, _ in values), tuple(d for _, d in values), strong=True)
    drawing = draw_chart([line])
    left, top, right, bottom = drawing.frame
    (drawn,) = drawing.lines
    shapes = (*drawn.pieces, *drawn.bands, drawn.missing)
    assert all(
        left - 1 <= x <= right + 1 and top - 1 <= y <= bottom + 1 for shape in shapes for x, y in shape
    )
    assert sum(map(len, drawn.pieces)) == sum(math.isfinite(y) for y, _ in values)
    assert len(drawn.missing) == sum(not math.isfinite(y) for y, _ in values)


@pytest.mark.parametrize("last_s, unit", [(40.0, "s"), (600.0, "min"), (86400.0, "h"), (900_000.0, "d")])
def test_times_are_told_in_units_that_people_use(last_s: float, unit: str) -> None:
    drawing = draw_chart([Line("p", (0.0, last_s), (1.0, 2.0), (0.1, 0.1))])
    assert all(text.endswith(f" {unit}") for _, text in drawing.x_ticks)
