"""What the report says of spot checks and of means over all fields."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from acq_isl.record import Comparison, FieldRecord, RunRecord
from acq_isl.report.report import render
from acq_isl.report.trust import describe_trust
from acq_isl.stack import Prediction, StackInfo

FIELDS = 40
SHARES = {"spot_checks": {"share": 0.5}, "bias_guard": {"share": 0.2}}


def key(n: int, channel: str = "Phase") -> dict[str, Any]:
    return {"time": 0, "position": f"p{n:02d}", "channel": channel}


def info(n: int) -> StackInfo:
    from acq_isl.stack import StackKey

    return StackInfo(StackKey(**key(n)), (0.0,), (8, 8), 0.3, 10.0 * n, 0.0)


def field(n: int) -> FieldRecord:
    mean = np.zeros((1, 8, 8), np.float32)
    made = Prediction(info(n), ("nuclei",), mean, mean, "0" * 64, "m", "e")
    return FieldRecord(info(n), np.zeros((8, 8), np.uint8), made)


def stained(n: int, objects: int) -> Comparison:
    image = np.zeros((8, 8), np.float32)
    return Comparison(info(n), "nuclei", "DAPI", image, image.astype(np.uint16), 0.5, 0.5, objects, objects)


def record(decisions: list[dict[str, Any]], objects: dict[int, int]) -> RunRecord:
    run = {"kind": "run", "experiment": SHARES}
    return RunRecord(
        "a run", "2026-11-28T12:00:00+01:00", 10.0, "a fake", "m",
        fields=tuple(field(n) for n in range(FIELDS)),
        comparisons=tuple(stained(n, found) for n, found in objects.items()),
        decisions=(run, *decisions),
    )  # fmt: skip


def visit(n: int, why: str) -> dict[str, Any]:
    return {"kind": "visit", "key": key(n, "DAPI"), "why": why}


def test_fields_of_a_rule_count_once_and_drawn_ones_by_their_probability() -> None:
    # Fields 0 and 1 are a rule's, of which chance had drawn 1, too; 2 and 3 were drawn: 1 - 0.5 * 0.8 = 0.6.
    visits = [visit(0, "rule"), visit(1, "spot check"), visit(1, "rule")]
    visits += [visit(2, "bias guard"), visit(3, "spot check")]
    section = describe_trust(record(visits, {0: 30, 1: 20, 2: 3, 3: 6}))
    assert section is not None
    counted = section.estimates[0]
    assert (counted.what, counted.visited, counted.fields) == ("nuclei: objects in the stain", 4, FIELDS)
    assert counted.naive.startswith("14.8 (")
    assert counted.weighted.startswith(f"{(50 + 9 / 0.6) / FIELDS:.3g} (")


def test_checks_and_what_became_of_the_label_are_told() -> None:
    checks = [
        {"kind": "spot_check", "label": "nuclei", "r": r, "found": 4, "true": 6, "matched": 2, "key": key(n)}
        for n, r in enumerate((0.2, None, 0.4))
    ]
    fallen = {"kind": "trust", "label": "nuclei", "state": "propose only", "why": "r = 0.30, below 0.5"}
    held = {
        "kind": "proposed", "rule": "bright", "what": "image", "why": "it is", "done": "proposed: r = 0.30",
        "key": key(5), "time": "2026-11-28T12:00:00+00:00",
    }  # fmt: skip
    made = record([*checks, fallen, held], {})
    made = replace(made, files={"pairs for adapting the model": "pairs.yaml"})
    section = describe_trust(made)
    assert section is not None and section.proposed == 1
    (row,) = section.checks
    assert (row.label, row.checks) == ("nuclei", 3)
    assert row.text == "r = 0.30, objects F1 = 0.40 (12 predicted, 18 in the stain)"
    page = render(made)
    assert "Checked on the way" in page and "only proposed from then on: r = 0.30, below 0.5" in page
    assert "acq-isl adapt MODEL --pairs pairs.yaml" in page and "proposed: r = 0.30" in page


def test_a_run_that_asked_for_nothing_of_it_says_nothing() -> None:
    plain = replace(record([], {}), decisions=({"kind": "run", "experiment": {}},))
    assert describe_trust(plain) is None and "Checked on the way" not in render(plain)


def test_a_stain_that_only_one_of_two_draws_takes_has_the_chance_of_that_one() -> None:
    asked = {**SHARES, "truth": {"nuclei": "DAPI"}, "revisit": {"channels": [{"config": "MAP2"}]}}
    run = {"kind": "run", "experiment": asked}
    one = record([visit(2, "spot check")], {2: 3})
    section = describe_trust(replace(one, decisions=(run, visit(2, "spot check"))))
    assert section is not None
    share = SHARES["spot_checks"]["share"]
    assert section.estimates[0].weighted.startswith(f"{3 / share / FIELDS:.3g} (")
