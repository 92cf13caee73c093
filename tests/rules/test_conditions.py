from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from acq_isl.rules import Condition, Measured, Measurement, Memory, ObjectCount, evaluate
from acq_isl.rules.conditions import describe, thresholds, walk
from acq_isl.rules.measurements import AreaFraction
from acq_isl.rules.satisfiable import terms, within_units

READ: TypeAdapter[Condition] = TypeAdapter(Condition)
CELLS, AREA = ObjectCount(label="cells"), AreaFraction(label="cells")
COUNT, SHARE = ({"kind": kind, "label": "cells"} for kind in ("object_count", "area_fraction"))
MANY, DENSE = {"measurement": COUNT, "above": 10}, {"measurement": SHARE, "above": 0.5}


def read(written: dict[str, Any]) -> Condition:
    return READ.validate_python(written)


def values(cells: float | None = None, area: float | None = None) -> dict[Measurement, Measured | None]:
    """What was measured; None was not."""
    pairs: tuple[tuple[Measurement, float | None], ...] = ((CELLS, cells), (AREA, area))
    return {m: None if value is None else Measured("", value, "", 0.0) for m, value in pairs}


def course(written: dict[str, Any], *cells: float | None) -> list[bool | None]:
    """What a condition says at one visit after the other."""
    condition, memory, found = read(written), Memory(), []
    for value in cells:
        evaluation, memory = evaluate(condition, values(value), memory)
        found.append(evaluation.holds)
    return found


@pytest.mark.parametrize(
    "written, cells, holds",
    [
        (MANY, 11, True),
        (MANY, 10, False),
        (MANY, None, None),
        (MANY, math.nan, None),
        ({"measurement": COUNT, "below": 10}, 9, True),
        ({"measurement": COUNT, "between": [3, 5]}, 3, True),
        ({"measurement": COUNT, "between": [3, 5]}, 5, True),
        ({"measurement": COUNT, "between": [3, 5]}, 5.1, False),
        ({"not": MANY}, 10, True),
        ({"not": MANY}, None, None),
        ({"not": {"not": MANY}}, 11, True),
    ],
)
def test_a_threshold_is_passed_failed_or_not_known(
    written: dict[str, Any], cells: float | None, holds: bool | None
) -> None:
    assert course(written, cells) == [holds]


LOGIC = [  # many, dense, all, any: Kleene's logic of three values
    (11, 0.6, True, True),
    (11, 0.4, False, True),
    (9, 0.4, False, False),
    (11, None, None, True),
    (9, None, False, None),
    (None, None, None, None),
]


@pytest.mark.parametrize("cells, area, every, some", LOGIC)
def test_what_is_not_known_decides_nothing_by_itself(
    cells: float | None, area: float | None, every: bool | None, some: bool | None
) -> None:
    for tree, holds in (({"all": [MANY, DENSE]}, every), ({"any": [MANY, DENSE]}, some)):
        assert evaluate(read(tree), values(cells, area))[0].holds is holds


@pytest.mark.parametrize(
    "written, cells, holds",
    [
        ({**MANY, "for": 2}, [11, 12, 9, 11, 12], [False, True, False, False, True]),
        ({**MANY, "for": 2}, [11, None, 12], [False, None, True]),
        ({"any": [MANY], "for": 3}, [11, 12, 13], [False, False, True]),
        ({**MANY, "hysteresis": 3}, [8, 11, 8, 7, 8, 11], [False, True, True, False, False, True]),
        ({"measurement": COUNT, "below": 10, "hysteresis": 3}, [9, 12, 13], [True, True, False]),
        (
            {"measurement": COUNT, "between": [3, 5], "hysteresis": 1},
            [4, 6, 7, 6],
            [True, True, False, False],
        ),
        ({**MANY, "hysteresis": 3, "for": 2}, [11, 8, 7], [False, True, False]),
    ],
)
def test_conditions_remember_the_visits_before(
    written: dict[str, Any], cells: list[float | None], holds: list[bool | None]
) -> None:
    assert course(written, *cells) == holds


def test_parts_that_are_one_object_are_counted_apart() -> None:
    many = read(MANY | {"for": 2})
    both = read({"all": [many, many]})
    memory = evaluate(both, values(11))[1]
    assert memory.rows[1:] == (1, 1)
    assert evaluate(both, values(11), memory)[0].holds is True


def test_a_memory_of_another_condition_is_none() -> None:
    assert evaluate(read(MANY), values(11), Memory((5, 5), (True, True)))[0].holds is True


@pytest.mark.parametrize(
    "number, unit, kind, own",
    [
        (30, "%", "area_fraction", 0.3),
        (0.3, "fraction", "area_fraction", 0.3),
        (2, "mm2", "area", 2e6),
        (2, "µm²", "area", 2),
        (1, "mm", "length", 1000),
        (100, "1/cm2", "density", 1),
        (5, "objects", "object_count", 5),
    ],
)
def test_numbers_may_have_another_unit_of_the_same_kind(
    number: float, unit: str, kind: str, own: float
) -> None:
    (threshold,) = thresholds(read({"measurement": {kind: {"label": "a"}}, "above": number, "unit": unit}))
    assert threshold.value == pytest.approx(own)


@pytest.mark.parametrize(
    "written, says",
    [
        ({"measurement": COUNT, "above": 1, "unit": "um"}, "'um' is no unit of what is measured in objects"),
        ({"measurement": {"area": {"label": "a"}}, "above": 1, "unit": "um3"}, "did you mean 'um2'"),
        ({"measurement": COUNT}, "either 'above' or 'below' or 'between'"),
        ({"measurement": COUNT, "above": 1, "between": [1, 2]}, "either 'above' or 'below' or 'between'"),
        ({"measurement": COUNT, "between": [2, 1]}, "smaller value comes first"),
        ({"measurement": COUNT, "above": 1, "for": 0}, "greater than or equal to 1"),
        ({"measurement": COUNT, "above": 1, "hysteresis": -1}, "greater than or equal to 0"),
        ({"all": []}, "at least 1 item"),
        ({"not": MANY, "for": 2}, "Extra inputs"),
        ({"all": [MANY], "above": 3}, "Extra inputs"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(written: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        read(written)


def test_the_reason_is_in_plain_words() -> None:
    tree = read({"all": [{**MANY, "for": 2}, {"any": [DENSE, {"not": {**MANY, "hysteresis": 1}}]}]})
    assert describe(tree) == (
        "(number of objects in cells (predicted) is above 10 objects at 2 visits in a row and (area of cells "
        "(predicted) above 0.5 is above 50.0 % of the area or it is not so that number of objects in cells "
        "(predicted) is above 10 objects, and then until it has come back by 1 object))"
    )
    said = {CELLS: Measured("", 12, "objects", 2.0), AREA: Measured("", 0.7, "fraction", 0.01)}
    assert evaluate(tree, said)[0].why == (
        "number of objects in cells (predicted) is 12 ± 2.0 objects, above 10 objects, at 1 of 2 visits in a "
        "row; and area of cells (predicted) above 0.5 is 70.0 ± 1.0 % of the area, above 50.0 % of the area"
    )


TREES = st.recursive(
    st.builds(
        lambda kind, side, number: {"measurement": kind, side: number},
        st.sampled_from([COUNT, SHARE]),
        st.sampled_from(["above", "below"]),
        st.floats(0, 1),
    ),
    lambda inner: st.one_of(
        st.builds(lambda parts: {"all": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"any": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=40)
@given(TREES, st.floats(0, 1), st.floats(0, 1))
def test_what_holds_can_be_satisfied_and_what_is_contradictory_never_holds(
    tree: dict[str, Any], cells: float, area: float
) -> None:
    condition = read(tree)
    holds = evaluate(condition, values(cells, area))[0].holds
    possible = terms(condition, wanted=bool(holds))
    assert possible is not None
    assert any(within_units(term) for term in possible)


@settings(max_examples=40)
@given(TREES)
def test_conditions_are_read_back_as_they_are_written(tree: dict[str, Any]) -> None:
    condition = read(tree)
    assert READ.validate_python(READ.dump_python(condition, by_alias=True, mode="json")) == condition
    assert len(list(walk(condition))) >= len(thresholds(condition)) >= 1


@settings(max_examples=40)
@given(TREES, st.floats(0, 1), st.floats(0, 1))
def test_a_tree_and_its_negation_never_agree(tree: dict[str, Any], cells: float, area: float) -> None:
    found = [evaluate(read(each), values(cells, area))[0].holds for each in (tree, {"not": tree})]
    assert sorted(map(bool, found)) == [False, True]
