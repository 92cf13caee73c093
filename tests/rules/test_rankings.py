from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from acq_isl.rules import Best, Choice, Measured, Ranking, rank
from acq_isl.rules.rankings import Candidate
from acq_isl.stack import Outcome, Refusal, StackInfo, StackKey
from tests.rules.test_physical_measurements import HALF, predicted

READ: TypeAdapter[Ranking] = TypeAdapter(Ranking)
A, B = ({"kind": "mean_intensity", "label": label} for label in "ab")
EXAMPLES: list[dict[str, Any]] = [
    {"k": 2, "measurement": A},
    {"kind": "best", "k": 2, "measurement": A, "descending": False},
    {"kind": "weighted", "k": 2, "terms": [{"measurement": A}, {"measurement": B, "weight": -0.5}]},
    {"kind": "diverse", "k": 2, "by": [A, B]},
    {"kind": "quota", "each": 1, "measurement": A},
    {"kind": "pareto", "k": 2, "goals": [{"measurement": A}, {"measurement": B, "descending": False}]},
]


def outcome(name: str) -> Outcome:
    info = StackInfo(StackKey(0, name, "Phase"), (0.0,), (4, 4), 0.5)
    return Refusal(info, "it is dark", "light") if name.startswith("refused") else _named(name)


def _named(name: str) -> Outcome:
    from dataclasses import replace

    prediction = predicted({"a": HALF})
    return replace(prediction, info=replace(prediction.info, key=StackKey(0, name, "Phase")))


def ranked(written: dict[str, Any], fields: dict[str, tuple[float, ...]]) -> tuple[Choice, ...]:
    rule = READ.validate_python(written)
    found = [
        (
            outcome(name),
            [Measured("", v, "relative intensity", 0.0) for v in values[: len(rule.measurements)]],
        )
        for name, values in fields.items()
    ]
    return rank(rule, found)


def chosen(written: dict[str, Any], fields: dict[str, tuple[float, ...]]) -> list[str]:
    return [choice.key.position for choice in ranked(written, fields) if choice.chosen]


FIELDS = {"A1_0": (1.0, 0.0), "A1_1": (0.9, 0.9), "A2_0": (0.2, 0.1), "A2_1": (0.0, 1.0), "B1_0": (0.1, 0.2)}


@pytest.mark.parametrize(
    "written, names",
    [
        (EXAMPLES[0], ["A1_0", "A1_1"]),
        (EXAMPLES[1], ["A2_1", "B1_0"]),
        ({"kind": "weighted", "k": 1, "terms": [{"measurement": A}, {"measurement": B}]}, ["A1_1"]),
        ({"kind": "weighted", "k": 1, "terms": [{"measurement": A, "weight": -1}, {"measurement": B}]},
         ["A2_1"]),
        ({"kind": "diverse", "k": 2, "by": [A]}, ["A1_0", "A2_1"]),
        ({"kind": "diverse", "k": 3, "by": [A, B]}, ["A1_0", "A2_1", "A1_1"]),
        ({"kind": "quota", "each": 1, "measurement": A}, ["A1_0", "A2_0", "B1_0"]),
        ({"kind": "quota", "each": 2, "k": 4, "measurement": A}, ["A1_0", "A2_0", "B1_0", "A1_1"]),
        ({"kind": "quota", "each": 1, "measurement": A, "descending": False}, ["A2_1", "B1_0", "A1_1"]),
        ({"kind": "pareto", "k": 3, "goals": [{"measurement": A}, {"measurement": B}]},
         ["A1_0", "A2_1", "A1_1"]),
        ({"kind": "pareto", "k": 1, "goals": [{"measurement": A}, {"measurement": B, "descending": False}]},
         ["A1_0"]),
    ],
)  # fmt: skip
def test_fields_are_chosen(written: dict[str, Any], names: list[str]) -> None:
    assert chosen(written, FIELDS) == names


VALUES = st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
SOME_FIELDS = st.dictionaries(
    st.sampled_from([f"{w}_{n}" for w in ("A1", "B2", "x") for n in range(3)]), VALUES
)


@settings(max_examples=40)
@given(st.sampled_from(EXAMPLES), SOME_FIELDS)
def test_every_ranking_has_every_field_once_and_takes_what_it_says(
    written: dict[str, Any], fields: dict[str, tuple[float, float]]
) -> None:
    rule, choices = READ.validate_python(written), ranked(written, fields)
    assert sorted(choice.key.position for choice in choices) == sorted(fields)
    assert [choice.rank for choice in choices] == list(range(1, len(fields) + 1))
    wells = len({name.partition("_")[0] for name in fields})
    assert sum(choice.chosen for choice in choices) == rule.most(len(fields), wells)
    assert all(
        choice.reason.startswith("Chosen: " if choice.chosen else "Not chosen: ") for choice in choices
    )


@settings(max_examples=40)
@given(SOME_FIELDS)
def test_nobody_beats_a_field_of_the_first_front(fields: dict[str, tuple[float, float]]) -> None:
    written = {"kind": "pareto", "k": 9, "goals": [{"measurement": A}, {"measurement": B}]}
    for choice in ranked(written, fields):
        if "front 1," in choice.reason:
            a, b = fields[choice.key.position]
            assert not any(x >= a and y >= b and (x > a or y > b) for x, y in fields.values())


@pytest.mark.parametrize("written", EXAMPLES)
def test_what_cannot_be_ranked_is_not_chosen(written: dict[str, Any]) -> None:
    fields = {"A1_0": (1.0, 1.0), "refused": (9.0, 9.0), "A1_1": (math.nan, math.nan)}
    assert chosen(written, fields) == []
    assert chosen({**written, "require": 0.3}, fields) == ["A1_0"]


@pytest.mark.parametrize("written", EXAMPLES)
def test_a_ranking_is_read_back_and_says_what_it_does(written: dict[str, Any]) -> None:
    rule = READ.validate_python(written)
    assert READ.validate_python(rule.model_dump(mode="json", by_alias=True)) == rule
    assert rule.title


def test_the_old_form_is_the_best() -> None:
    assert READ.validate_python(EXAMPLES[0]) == Best(k=2, measurement=A)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "written, says",
    [
        ({"kind": "bset", "k": 1, "measurement": A}, "best"),
        ({"kind": "weighted", "k": 1, "terms": []}, "at least 1 item"),
        ({"kind": "pareto", "k": 1, "goals": [{"measurement": A}]}, "goals"),
        ({"kind": "quota", "measurement": A}, "each"),
    ],
)
def test_rankings_that_make_no_sense_are_refused(written: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        READ.validate_python(written)


def test_equal_fields_have_no_distance() -> None:
    rule = READ.validate_python(EXAMPLES[3])
    same = [Candidate(StackKey(0, str(n), ""), (Measured("", 1.0, "", 0.0),) * 2) for n in range(3)]
    assert [placed.chosen for placed in rule.order(same)] == [True, True, False]
