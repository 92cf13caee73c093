"""Rules about objects, fields, wells and the run, as outcomes come in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from acq_isl.rules import Trigger
from acq_isl.rules.cache import MeasurementCache
from acq_isl.rules.deciding import Decider, Verdict
from acq_isl.stack import Distance, Outcome, Prediction, Refusal, StackInfo, StackKey, Unpredicted
from tests.rules.test_physical_measurements import canvas, predicted

MEAN = {"kind": "mean_intensity", "label": "a"}
DO = {"kind": "set_preset", "group": "Channel", "preset": "DAPI"}
BRIGHT = {"measurement": MEAN, "above": 0.5}


def field(name: str, level: float, time: int = 0, model: str = "", label: str = "a") -> Prediction:
    prediction = predicted({label: np.full((8, 8), level)})
    info = replace(prediction.info, key=StackKey(time, name, "Phase"))
    return replace(prediction, info=info, model=model)


def refused(name: str, time: int = 0) -> Refusal:
    return Refusal(StackInfo(StackKey(time, name, "Phase"), (0.0,), (8, 8), 0.5), "it is dark", "light")


def decider(**trigger: Any) -> Decider:
    rule = Trigger.model_validate({"when": BRIGHT, "do": DO, "at_most": 9} | trigger)
    return Decider([rule], lambda label: "b" if label == "b" else "", MeasurementCache())


def course(made: Decider, *outcomes: Outcome) -> list[Verdict]:
    made.expect([outcome.info.key for outcome in outcomes])
    return [verdict for outcome in outcomes for verdict in made.decide(outcome, 0.0, {})]


def at(verdicts: list[Verdict]) -> list[tuple[str, bool]]:
    return [(each.decision.key.position, each.kind == "act") for each in verdicts]


def test_a_field_is_decided_on_when_it_is_there() -> None:
    made = decider()
    assert at(course(made, field("A1_0", 0.9), refused("A1_1"), field("A1_2", 0.1))) == [
        ("A1_0", True), ("A1_1", False), ("A1_2", False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "statistic, levels, acts",
    [
        ("mean", (0.9, 0.2), True),
        ("mean", (0.9, 0.05), False),
        ("min", (0.9, 0.2), False),
        ("max", (0.9, 0.2), True),
        ("sum", (0.3, 0.3), True),
        ("median", (0.4, 0.5), False),
    ],
)
def test_a_well_is_decided_on_once_all_its_fields_are_there(
    statistic: str, levels: tuple[float, float], acts: bool
) -> None:
    made = decider(scope="well", statistic=statistic)
    a, b = (field(f"A1_{n}", level) for n, level in enumerate(levels))
    other = field("B1_0", 0.1)
    made.expect([each.info.key for each in (a, b, other)])
    assert made.decide(b, 0.0, {}) == ()
    assert at(list(made.decide(other, 0.0, {}))) == [("B1_0", False)]
    strongest = "A1_0" if levels[0] > levels[1] else "A1_1" if levels[1] > levels[0] else "A1_0"
    verdicts = list(made.decide(a, 0.0, {}))
    assert at(verdicts) == [(strongest, acts)]
    assert f"({statistic} of 2 fields of well A1)" in verdicts[0].decision.why


@pytest.mark.parametrize("require, acts", [(1.0, False), (0.5, True)])
def test_a_well_with_fields_that_never_came_is_decided_on_in_the_end(require: float, acts: bool) -> None:
    made = decider(scope="well", require=require)
    made.expect([StackKey(0, f"A1_{n}", "Phase") for n in range(2)])
    assert made.decide(field("A1_0", 0.9), 0.0, {}) == ()
    (verdict,) = made.close(0)
    assert (verdict.kind == "act") is acts
    assert acts or verdict.decision.why == "No decision: 1 of 2 fields of well A1 are not predicted."
    assert made.close(0) == ()


def test_the_run_is_all_fields_of_a_time_point() -> None:
    made = decider(scope="run", when={**BRIGHT, "for": 2})
    for time, acts in ((0, False), (1, True)):
        verdicts = course(made, field("A1_0", 0.9, time), field("B1_0", 0.9, time))
        assert [each.kind == "act" for each in verdicts] == [acts]


def test_visits_are_counted_for_each_place() -> None:
    made = decider(when={**BRIGHT, "for": 2})
    levels = [("A1_0", 0, 0.9), ("A1_1", 0, 0.1), ("A1_0", 1, 0.9), ("A1_1", 1, 0.9), ("A1_1", 2, 0.9)]
    verdicts = [v for name, time, level in levels for v in course(made, field(name, level, time))]
    assert [each.kind == "act" for each in verdicts] == [False, False, True, False, True]


def test_one_object_is_enough_and_all_that_pass_are_named() -> None:
    size = {"measurement": {"kind": "object", "label": "a"}, "above": 200, "unit": "um2"}
    long = {"measurement": {"kind": "object", "label": "a", "what": "eccentricity"}, "below": 0.9}
    made = decider(scope="object", when={"all": [size, long]})
    image = predicted({"a": canvas((30, 30, 8), (40, 90, 18), (90, 60, 20))})
    (verdict,) = made.decide(image, 0.0, {})
    assert verdict.kind == "act"
    assert [(round(each.y_px), round(each.x_px)) for each in verdict.decision.objects] == [(90, 60), (40, 90)]
    assert verdict.decision.why.startswith("2 of 3 objects: (mean area of objects in a (predicted) is above")


@pytest.mark.parametrize(
    "when, says",
    [
        (BRIGHT, "needs measurements of kind object"),
        ({"measurement": {"kind": "object", "label": "a"}, "above": 1, "for": 2}, "not followed over time"),
        (
            {"all": [{"measurement": {"kind": "object", "label": label}, "above": 1} for label in "ab"]},
            "on the same objects",
        ),
    ],
)
def test_rules_per_object_that_make_no_sense_are_refused(when: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        decider(scope="object", when=when)


def test_labels_of_several_models_are_waited_for() -> None:
    both = {"all": [BRIGHT, {"measurement": {"kind": "mean_intensity", "label": "b"}, "above": 0.5}]}
    made = decider(when=both)
    assert made.decide(field("A1_0", 0.9), 0.0, {}) == ()
    assert at(list(made.decide(field("A1_0", 0.9, model="b", label="b"), 0.0, {}))) == [("A1_0", True)]


def test_what_may_still_come_is_waited_for() -> None:
    made, prediction = decider(), field("A1_0", 0.9)
    assert made.decide(Unpredicted(prediction.info, "late", "spool"), 0.0, {}) == ()
    assert at(list(made.decide(prediction, 0.0, {}))) == [("A1_0", True)]
    assert made.decide(prediction, 0.0, {}) == ()  # once only


@pytest.mark.parametrize("scope", ["field", "well"])
def test_what_looks_unlike_the_training_set_is_only_proposed(scope: str) -> None:
    odd = replace(field("A1_0", 0.9), distances=(Distance("features", 2.0, 1.0),))
    (verdict,) = course(decider(scope=scope), odd)
    assert verdict.kind == "proposed" and "features 2 (limit 1)" in verdict.withheld


def test_a_demoted_label_is_only_proposed_and_a_late_decision_not_done() -> None:
    (proposed,) = decider().decide(field("A1_0", 0.9), 0.0, {"a": "spot checks"})
    (late,) = decider(deadline_s=1.0).decide(field("A1_0", 0.9), 2.0, {})
    assert (proposed.kind, late.kind) == ("proposed", "late")


def test_a_trigger_acts_at_most_so_often_and_what_it_saw_is_kept() -> None:
    made = decider(at_most=1)
    first, second = course(made, field("A1_0", 0.9), field("A1_1", 0.9))
    assert (first.kind, second.kind) == ("act", "nothing")
    assert [each.value for each in first.decision.measured] == [pytest.approx(0.9)]
    assert "may act only 1 x" in second.decision.why


def test_a_field_that_gave_no_number_is_missing_to_its_well() -> None:
    made = decider(scope="well", statistic="sum", when={"measurement": MEAN, "below": 5})
    (verdict,) = course(made, field("A1_0", 0.2), field("A1_1", np.nan))
    assert verdict.kind == "nothing"
    assert verdict.decision.why == "No decision: 1 of 2 fields of well A1 are not measured."


@pytest.mark.parametrize(
    ("when", "place"),
    [
        ({"not": {"measurement": MEAN, "above": 0.9}}, "A1_1"),
        ({"measurement": MEAN, "between": [0.4, 0.6]}, "A1_1"),
        ({"measurement": MEAN, "above": 0.1}, "A1_0"),
    ],
    ids=["not above", "between", "above"],
)
def test_a_well_is_acted_upon_where_the_condition_holds(when: dict[str, Any], place: str) -> None:
    made = decider(scope="well", statistic="median", when=when)
    verdicts = course(made, field("A1_0", 0.95), field("A1_1", 0.5), field("A1_2", 0.3))
    assert at(verdicts)[-1] == (place, True)
