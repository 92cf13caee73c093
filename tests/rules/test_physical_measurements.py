"""Every measurement on pictures whose numbers are known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from acq_isl.errors import ExperimentError
from acq_isl.rules import Measurement, Visit
from acq_isl.rules.cache import MeasurementCache
from acq_isl.rules.measurements import measure
from acq_isl.rules.objects import ObjectShape
from acq_isl.rules.over_time import Change, GrowthRate
from acq_isl.stack import Distance, NetworkLabel, ObjectCounting, Prediction, StackInfo, StackKey

PIXEL_UM = 0.5
SIDE = 128
FIELD_UM2 = (SIDE * PIXEL_UM) ** 2
READ: TypeAdapter[Measurement] = TypeAdapter(Measurement)


def predicted(planes: Mapping[str, Any], std: float = 0.1, *, time: int = 0, **other: Any) -> Prediction:
    """A prediction with these labels, (y, x) each."""
    mean = np.stack([np.asarray(plane, np.float32) for plane in planes.values()])
    info = StackInfo(StackKey(time, "A1_000", "Phase"), (0.0, 1.0), mean.shape[1:], PIXEL_UM)
    return Prediction(info, tuple(planes), mean, np.full_like(mean, std), "ab", "m", "e", **other)


def canvas(*discs: tuple[int, int, int]) -> Any:
    """Discs, each at a row and column with a radius in pixels."""
    y, x = np.mgrid[:SIDE, :SIDE]
    image = np.zeros((SIDE, SIDE), np.float32)
    for row, column, radius in discs:
        image[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = 1
    return image


def lines(*parts: tuple[slice | int, slice | int]) -> Any:
    image = np.zeros((SIDE, SIDE), np.float32)
    for part in parts:
        image[part] = 1
    return image


FOUR = canvas((30, 30, 8), (30, 90, 8), (90, 30, 8), (90, 90, 8))
LARGE_UM2 = np.count_nonzero(canvas((64, 64, 16))) * PIXEL_UM**2
DISC_UM2 = np.count_nonzero(canvas((64, 64, 8))) * PIXEL_UM**2
HALF = np.zeros((SIDE, SIDE), np.float32)
HALF[:64] = 1
ONE_DEAD = canvas((30, 30, 8))
ELLIPSE = np.fromfunction(lambda y, x: ((y - 64) / 20) ** 2 + ((x - 64) / 10) ** 2 <= 1, (SIDE, SIDE))
CROSS = lines((64, slice(10, 118)), (slice(10, 118), 64))
LADDER = lines((40, slice(10, 118)), (80, slice(10, 118)), (slice(40, 81), 40), (slice(40, 81), 90))

KNOWN: list[tuple[str, dict[str, Any], dict[str, Any], float, float, str]] = [
    # what, how it is written, what is predicted, value, tolerance, unit
    ("area", {"kind": "area", "label": "a"}, {"a": HALF}, FIELD_UM2 / 2, 1e-6, "um2"),
    ("confluency", {"kind": "confluency", "label": "a"}, {"a": HALF}, 0.5, 1e-9, "fraction"),
    (
        "confluency of two labels, which overlap by a quarter",
        {"kind": "confluency", "label": "a", "also": ["b"], "gaps_um2": 0},
        {"a": HALF, "b": HALF.T},
        0.75,
        1e-9,
        "fraction",
    ),
    (
        "gaps are covered",
        {"kind": "confluency", "label": "a", "gaps_um2": DISC_UM2 + 1},
        {"a": 1 - FOUR},
        1.0,
        1e-9,
        "fraction",
    ),
    ("larger ones are not", {"kind": "confluency", "label": "a", "gaps_um2": 10}, {"a": 1 - FOUR},
     1 - 4 * DISC_UM2 / FIELD_UM2, 1e-6, "fraction"),
    ("density", {"kind": "density", "label": "a"}, {"a": FOUR}, 4 / FIELD_UM2 * 1e6, 1e-6, "1/mm2"),
    ("integrated", {"kind": "integrated_intensity", "label": "a"}, {"a": HALF}, FIELD_UM2 / 2, 1e-3,
     "relative intensity um2"),
    ("uncertainty", {"kind": "uncertainty", "label": "a"}, {"a": HALF}, 0.1, 1e-6, "relative intensity"),
    ("share", {"kind": "share", "label": "a", "positive": "b"}, {"a": FOUR, "b": ONE_DEAD}, 0.25, 1e-9,
     "fraction"),
    ("no branch", {"kind": "branch_points", "label": "a"}, {"a": lines((64, slice(10, 118)))}, 0, 0,
     "branch points"),
    ("a cross", {"kind": "branch_points", "label": "a"}, {"a": CROSS}, 1, 0, "branch points"),
    ("a ladder", {"kind": "branch_points", "label": "a"}, {"a": LADDER}, 4, 0, "branch points"),
    ("a straight line", {"kind": "length", "label": "a"}, {"a": lines((64, slice(10, 110)))}, 99 * PIXEL_UM,
     1e-6, "um"),
    ("mean area", {"kind": "object", "label": "a"}, {"a": FOUR}, DISC_UM2, 2.0, "um2"),
    ("diameter", {"kind": "object", "label": "a", "what": "diameter"}, {"a": FOUR}, 16 * PIXEL_UM, 0.3, "um"),
    ("round", {"kind": "object", "label": "a", "what": "eccentricity"}, {"a": FOUR}, 0.0, 0.15, "ratio"),
    ("long", {"kind": "object", "label": "a", "what": "eccentricity"}, {"a": ELLIPSE}, math.sqrt(0.75), 0.02,
     "ratio"),
    ("convex", {"kind": "object", "label": "a", "what": "solidity"}, {"a": FOUR}, 1.0, 0.08, "ratio"),
    ("intensity of another label", {"kind": "object", "label": "a", "what": "intensity", "of": "b"},
     {"a": FOUR, "b": FOUR * 0.5}, 0.5, 0.05, "relative intensity"),
    ("the largest", {"kind": "object", "label": "a", "statistic": "max"},
     {"a": canvas((30, 30, 8), (90, 90, 16))}, LARGE_UM2, 4.0, "um2"),
    ("sum of areas", {"kind": "object", "label": "a", "statistic": "sum"}, {"a": FOUR}, 4 * DISC_UM2, 8.0,
     "um2"),
]  # fmt: skip


@pytest.mark.parametrize(
    "written, planes, value, tolerance, unit", [case[1:] for case in KNOWN], ids=[case[0] for case in KNOWN]
)
def test_what_is_measured_is_what_was_drawn(
    written: dict[str, Any], planes: dict[str, Any], value: float, tolerance: float, unit: str
) -> None:
    measured = measure(predicted(planes), READ.validate_python(written))
    assert measured.value == pytest.approx(value, abs=tolerance)
    assert measured.unit == unit
    assert math.isfinite(measured.doubt) or measured.text.endswith("doubt unknown")


def test_every_kind_is_held_against_what_is_known() -> None:
    elsewhere = {"area_fraction", "mean_intensity", "object_count", "python"}  # other tables
    below = {"change", "growth_rate", "novelty", "quality", "focus_offset"}
    assert {case[1]["kind"] for case in KNOWN} | elsewhere | below == set(Measurement.kinds())


def test_a_density_is_the_calibrated_count_over_the_whole_field() -> None:
    weights = {"per_mm2": 0.0, "per_maximum": 2.0, "per_intensity_um2": 0.0}
    counting = ObjectCounting(
        "a", 1.0, 0.1, 2.0, **weights, variance_per_object=1.0, variance_per_mm2=0.0, fields=1,
        bias=0, correlation=1, within_1_sd=0.7, within_2_sd=0.95, judged_on="",
    )  # fmt: skip
    prediction = predicted({"a": FOUR}, counting=(counting,), border_px=20)
    count, density = (
        measure(prediction, READ.validate_python({"kind": kind, "label": "a"}))
        for kind in ("object_count", "density")
    )
    assert density.value == pytest.approx(count.value / FIELD_UM2 * 1e6)
    assert density.doubt == pytest.approx(count.doubt / FIELD_UM2 * 1e6)


@pytest.mark.parametrize("kind", ["density", "share", "object"])
def test_a_network_has_no_objects(kind: str) -> None:
    written = {"kind": kind, "label": "a"} | ({"positive": "b"} if kind == "share" else {})
    prediction = predicted({"a": CROSS, "b": CROSS}, counting=(NetworkLabel("a"),))
    with pytest.raises(ExperimentError, match=f"network, which has no objects.*got: {kind}"):
        measure(prediction, READ.validate_python(written))


@pytest.mark.parametrize("kind", ["share", "object"])
def test_without_objects_nothing_is_known_of_them(kind: str) -> None:
    written = {"kind": kind, "label": "a"} | ({"positive": "b"} if kind == "share" else {})
    nothing = np.zeros((SIDE, SIDE))
    assert math.isnan(measure(predicted({"a": nothing, "b": nothing}), READ.validate_python(written)).value)


def test_an_unsure_state_makes_the_share_unsure() -> None:
    share = READ.validate_python({"kind": "share", "label": "a", "positive": "b"})
    sure, even = (measure(predicted({"a": FOUR, "b": FOUR * level}, 0.1), share) for level in (1.0, 0.5))
    assert sure.doubt < 0.01
    assert even.doubt == pytest.approx(math.sqrt(4 * 0.25) / 4, rel=0.05)  # four coins


def test_objects_of_a_field_come_one_by_one() -> None:
    found = ObjectShape(label="a").measure_objects(predicted({"a": canvas((30, 40, 8), (90, 90, 12))}))
    assert [(round(each.y_px), round(each.x_px)) for each in found] == [(30, 40), (90, 90)]
    assert found[0].value < found[1].value


def gate(*distances: tuple[str, float, float]) -> Prediction:
    found = tuple(Distance(*each) for each in distances)
    return predicted({"a": HALF}, distances=found, focus_offset_um=-1.25)


@pytest.mark.parametrize(
    "written, value",
    [
        ({"kind": "novelty"}, 0.8),
        ({"kind": "novelty", "distance": "focus"}, 0.5),
        ({"kind": "quality"}, 0.2),
        ({"kind": "novelty", "distance": "nothing"}, math.nan),
        ({"kind": "focus_offset"}, -1.25),
    ],
)
def test_how_a_stack_suits_its_model(written: dict[str, Any], value: float) -> None:
    prediction = gate(("features", 4.0, 5.0), ("focus", 1.0, 2.0))
    assert measure(prediction, READ.validate_python(written)).value == pytest.approx(value, nan_ok=True)


def test_without_a_gate_novelty_is_not_known() -> None:
    measured = measure(gate(), READ.validate_python({"kind": "novelty"}))
    assert math.isnan(measured.value) and measured.text == "no number"


AREA = READ.validate_python({"kind": "area", "label": "a"})


@given(st.floats(-0.5, 0.5), st.integers(2, 6), st.floats(1.0, 1e6))
def test_exponential_growth_is_found_whatever_the_interval(rate: float, visits: int, start: float) -> None:
    hours = np.cumsum(np.linspace(0.5, 2, visits))
    seen = [Visit(h * 3600, start * math.exp(rate * h), 0.0) for h in hours]
    value, doubt = GrowthRate(of=AREA, visits=6).compare(seen)
    assert value == pytest.approx(rate, abs=1e-6)
    assert doubt == 0


def test_the_doubt_of_a_growth_rate_is_that_of_its_ends() -> None:
    value, doubt = GrowthRate(of=AREA).compare([Visit(0.0, 100.0, 10.0), Visit(3600.0, 200.0, 20.0)])
    assert value == pytest.approx(math.log(2))
    assert doubt == pytest.approx(math.hypot(0.1, 0.1))


@pytest.mark.parametrize(
    "since, values, change",
    [
        ("last", [1, 5, 3], -2),
        ("first", [1, 5, 3], 2),
        ("last", [1], math.nan),
        ("last", [1, math.nan, 3], 2),
        ("last", [1, math.nan], math.nan),
        ("last", [], math.nan),
    ],
)
def test_a_change_is_from_a_visit_that_is_known(since: Any, values: list[float], change: float) -> None:
    seen = [Visit(60.0 * n, value, 3.0 + n) for n, value in enumerate(values)]
    value, doubt = Change(of=AREA, since=since).compare(seen)
    assert value == pytest.approx(change, nan_ok=True)
    assert math.isnan(value) or doubt >= 3


def test_a_run_compares_the_visits_of_each_field() -> None:
    cache, change = MeasurementCache(), Change(of=AREA)
    rate, found = GrowthRate(of=AREA), []
    for time, rows in enumerate((32, 64, 64)):
        image = np.zeros((SIDE, SIDE))
        image[:rows] = 1
        prediction = predicted({"a": image}, time=time)
        cache.imaged(prediction.info.key, time * 1800.0)
        found.append([cache.measure(prediction, each) for each in (change, rate)])
    changes, rates = ([each.value if each else 0 for each in column] for column in zip(*found, strict=True))
    assert changes[1:] == [FIELD_UM2 / 4, 0.0] and math.isnan(changes[0])
    assert rates[1] == pytest.approx(2 * math.log(2))


def test_a_comparison_of_comparisons_is_refused() -> None:
    with pytest.raises(ValidationError, match="compare what one visit tells"):
        READ.validate_python(
            {"kind": "change", "of": {"kind": "change", "of": {"kind": "area", "label": "a"}}}
        )


def test_a_kind_may_be_the_key() -> None:
    short = READ.validate_python({"area": {"label": "a", "above": 0.3}})
    assert short == READ.validate_python({"kind": "area", "label": "a", "above": 0.3})
