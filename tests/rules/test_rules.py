from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from acq_isl.errors import ActionRefused
from acq_isl.record import Measured
from acq_isl.rules import (
    Action,
    Best,
    Call,
    ImageField,
    Limits,
    SetPreset,
    Threshold,
    Trigger,
    check_request,
    decide,
    rank,
)
from acq_isl.rules.measurements import AreaFraction, ObjectCount
from acq_isl.stack import Outcome, Prediction, Refusal, StackInfo, StackKey, StackRequest, Unpredicted

NUCLEI = ObjectCount(label="nuclei")
IMAGE = ImageField(channels=("DAPI", "FITC"), exposure_ms=50)


def info(name: str = "A1_000") -> StackInfo:
    return StackInfo(StackKey(0, name, "Phase"), (90.0, 100.0, 110.0), (4, 4), 0.5, x_um=10.0, y_um=20.0)


def predicted(name: str = "A1_000", *, warnings: tuple[str, ...] = ()) -> Prediction:
    empty = np.zeros((1, 4, 4), np.float32)
    return Prediction(info(name), ("nuclei",), empty, empty, "", "m", "e", warnings=warnings)


def count(value: float, doubt: float = 0.0) -> Measured:
    return Measured("n", value, "objects", doubt)


def fields(*values: float) -> list[tuple[Outcome, Measured | None]]:
    return [(predicted(f"f{i}"), count(value)) for i, value in enumerate(values)]


@pytest.mark.parametrize(
    "descending, k, order, chosen",
    [
        (True, 2, ["f2", "f0", "f3", "f1"], ["f2", "f0"]),
        (False, 1, ["f1", "f0", "f3", "f2"], ["f1"]),
        (True, 9, ["f2", "f0", "f3", "f1"], ["f2", "f0", "f3", "f1"]),
    ],
)
def test_fields_are_ranked(descending: bool, k: int, order: list[str], chosen: list[str]) -> None:
    """f0 and f3 are equal: the order of acquisition decides."""
    choices = rank(Best(k=k, measurement=NUCLEI, descending=descending), fields(5, 1, 9, 5))
    assert [c.key.position for c in choices] == order
    assert [c.rank for c in choices] == [1, 2, 3, 4]
    assert [c.key.position for c in choices if c.chosen] == chosen


@given(st.lists(st.floats(-1e6, 1e6), max_size=8), st.integers(1, 10), st.booleans())
def test_ranking_loses_and_invents_no_field(values: list[float], k: int, descending: bool) -> None:
    choices = rank(Best(k=k, measurement=NUCLEI, descending=descending), fields(*values))
    assert sorted(c.key.position for c in choices) == sorted(f"f{i}" for i in range(len(values)))
    assert sum(c.chosen for c in choices) == min(k, len(values))
    assert all(c.reason for c in choices)


@pytest.mark.parametrize(
    "require, ranked, chosen", [(1.0, 5, 0), (0.6, 5, 0), (0.55, 5, 2), (0.0, 5, 2), (0.0, 0, 0), (1.0, 9, 2)]
)
def test_a_choice_needs_as_many_ranked_fields_as_the_experiment_says(
    require: float, ranked: int, chosen: int
) -> None:
    missing = [(Unpredicted(info(f"w{n}"), "the engine ended", "spool"), None) for n in range(9 - ranked)]
    choices = rank(Best(k=2, measurement=NUCLEI, require=require), [*fields(*range(ranked)), *missing])
    assert sum(choice.chosen for choice in choices) == chosen
    assert [choice.rank for choice in choices] == [*range(1, ranked + 1), *[None] * (9 - ranked)]
    if ranked and not chosen:
        assert choices[0].reason == (
            "Not chosen: 4 of 9 fields were not ranked, so no choice was made (number of objects in nuclei "
            "(predicted): 4 ± 0.0 objects (rank 1 of 5, highest first))."
        )


NEVER: list[tuple[Outcome, Measured | None, str]] = [
    (Refusal(info(), "pixels are 1 um", "change objective"), count(99), "pixels are 1 um"),
    (Unpredicted(info(), "no engine answered", "spool"), count(99), "no engine answered"),
    (predicted(), count(math.nan), "no number"),
    (predicted(), None, "no number"),
]


@pytest.mark.parametrize("outcome, measured, reason", NEVER)
def test_what_was_not_predicted_is_never_chosen(
    outcome: Outcome, measured: Measured | None, reason: str
) -> None:
    (choice,) = rank(Best(k=5, measurement=NUCLEI), [(outcome, measured)])
    assert (choice.rank, choice.chosen) == (None, False)
    assert reason in choice.reason


@pytest.mark.parametrize("outcome, measured, reason", NEVER)
@pytest.mark.parametrize("side", ["above", "below"])
def test_what_was_not_predicted_never_triggers(
    outcome: Outcome, measured: Measured | None, reason: str, side: str
) -> None:
    limit = {"above": -1.0} if side == "above" else {"below": 1000.0}
    trigger = Trigger(when=Threshold(measurement=NUCLEI, **limit), do=IMAGE)  # type: ignore[arg-type]
    decision = decide(trigger, outcome, measured, 0)
    assert decision.action is None
    assert decision.what == "nothing"


def test_reasons_are_for_microscopists() -> None:
    first, second = rank(
        Best(k=1, measurement=NUCLEI), [(predicted("a"), count(41, 3)), (predicted("b"), count(39, 2))]
    )
    assert first.reason == (
        "Chosen: number of objects in nuclei (predicted): 41 ± 3.0 objects (rank 1 of 2, highest first). "
        "Its lead over rank 2, which was not chosen, is within the doubt."
    )
    assert second.reason.startswith("Not chosen: number of objects in nuclei (predicted): 39 ± 2.0 objects")


@pytest.mark.parametrize(
    "limit, value, fires",
    [
        ({"above": 10.0}, 10.5, True),
        ({"above": 10.0}, 10.0, False),
        ({"above": 0.0}, 0.0, False),
        ({"below": 10.0}, 9.0, True),
        ({"below": 10.0}, 10.0, False),
        ({"below": 0.0}, -1.0, True),
    ],
)
def test_a_trigger_fires_past_its_threshold(limit: dict[str, float], value: float, fires: bool) -> None:
    trigger = Trigger(name="bright", when=Threshold(measurement=NUCLEI, **limit), do=IMAGE)
    decision = decide(trigger, predicted(), count(value), 0)
    assert (decision.action == IMAGE) is fires
    assert (decision.rule, decision.value, decision.threshold) == (
        "bright",
        value,
        next(iter(limit.values())),
    )


def test_a_decision_says_what_and_why() -> None:
    area = AreaFraction(label="nuclei", above=0.4)
    trigger = Trigger(when=Threshold(measurement=area, above=0.1), do=IMAGE)
    outcome = predicted(warnings=("pixel size was resampled",))
    decision = decide(trigger, outcome, Measured("", 0.123, "fraction", 0.01), 0)
    assert decision.what == "image this field in DAPI, FITC (50 ms)"
    assert decision.why == (
        "area of nuclei (predicted) above 0.4 is 12.3 ± 1.0 % of the area, above 10.0 % of the area"
        " (mind: pixel size was resampled)"
    )


def test_a_trigger_acts_at_most_so_often() -> None:
    trigger = Trigger(when=Threshold(measurement=NUCLEI, above=1), do=IMAGE, at_most=2)
    acted = [decide(trigger, predicted(), count(5), fired).action is not None for fired in range(4)]
    assert acted == [True, True, False, False]


@pytest.mark.parametrize(
    "raw, wanted",
    [
        (
            {"kind": "set_preset", "group": "Channel", "preset": "DAPI"},
            SetPreset(group="Channel", preset="DAPI"),
        ),
        ({"kind": "call", "function": "my.module:go"}, Call(function="my.module:go")),
        (
            {"kind": "image", "channels": ["DAPI"], "exposure_ms": 5},
            ImageField(channels=("DAPI",), exposure_ms=5),
        ),
    ],
)
def test_an_action_is_written_as_its_kind(raw: dict[str, Any], wanted: Action) -> None:
    assert TypeAdapter(Action).validate_python(raw) == wanted


@pytest.mark.parametrize(
    "model, raw",
    [
        (Call, {"function": "os.system('x')"}),
        (Call, {"function": "no_function"}),
        (ImageField, {"channels": [], "exposure_ms": 5}),
        (ImageField, {"channels": ["DAPI"], "exposure_ms": 0}),
        (ImageField, {"channels": ["DAPI"], "exposure_ms": 5, "colour": "red"}),
        (Threshold, {"measurement": NUCLEI}),
        (Threshold, {"measurement": NUCLEI, "above": 1, "below": 2}),
        (Best, {"k": 0, "measurement": NUCLEI}),
        (Trigger, {"when": {"measurement": NUCLEI, "above": 1}, "do": IMAGE, "at_most": 0}),
        (Limits, {"x_um": (5, 1)}),
        (Limits, {"exposure_ms": -1}),
    ],
)
def test_rules_that_make_no_sense_are_refused(model: Any, raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(raw)


LIMITS = Limits(
    x_um=(0, 100),
    y_um=(0, 100),
    z_um=(50, 120),
    exposure_ms=100,
    presets={"Channel": ("DAPI", "Phase", "FITC")},
)


@pytest.mark.parametrize(
    "action, limits, named",
    [
        (SetPreset(group="Channel", preset="UV"), LIMITS, "limits.presets.Channel"),
        (ImageField(channels=("DAPI", "UV"), exposure_ms=5), LIMITS, "got: UV"),
        (ImageField(channels=("DAPI",), exposure_ms=101), LIMITS, "at most 100 ms"),
        (ImageField(channels=("DAPI",), exposure_ms=5, z_offsets_um=(0, 21)), LIMITS, "z from 50 to 120 um"),
        (IMAGE, Limits(x_um=(50, 100)), "x from 50 to 100 um"),
        (IMAGE, Limits(y_um=(50, 100)), "limits.y_um"),
    ],
)
def test_an_action_past_the_limits_is_refused(action: Action, limits: Limits, named: str) -> None:
    with pytest.raises(ActionRefused, match="not done") as caught:
        action.check(info(), limits)
    assert named in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    "action",
    [
        IMAGE,
        ImageField(channels=("DAPI",), exposure_ms=100, z_offsets_um=(-50, 20)),
        SetPreset(group="Light", preset="anything"),
        Call(function="my.module:go"),
    ],
)
def test_an_action_within_the_limits_passes(action: Action) -> None:
    action.check(info(), LIMITS)
    action.check(info(), Limits())


@pytest.mark.parametrize(
    "change, named",
    [({}, None), ({"x_um": 101.0}, "x from"), ({"exposure_ms": 500.0}, "ms"), ({"preset": "UV"}, "UV")],
)
def test_a_request_is_held_to_the_same_limits(change: dict[str, Any], named: str | None) -> None:
    settings = {"x_um": 1.0, "preset": "Phase", "exposure_ms": 10.0} | change
    request = StackRequest(info().key, y_um=1.0, z_um=(60.0, 70.0), group="Channel", **settings)
    if named is None:
        check_request(request, LIMITS)
    else:
        with pytest.raises(ActionRefused, match=named):
            check_request(request, LIMITS)


def test_a_position_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ActionRefused):
        check_request(StackRequest(info().key, math.nan, 1.0, (60.0,), "Channel", "Phase", 10.0), LIMITS)
