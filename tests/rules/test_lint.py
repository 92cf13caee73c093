from __future__ import annotations

from typing import Any

import pytest

from acq_isl.experiment import Experiment
from acq_isl.manifest import Manifest
from acq_isl.rules.label_names import Labels, RunModel
from acq_isl.session.explain import explain, plan_without_scope

LABELS = ("nuclei", "axons")


def labels(gate: bool = False) -> Labels:
    limits = {"names": ("features",), "limits": (1.0,), "false_alarms": 0.01}
    manifest = Manifest.model_validate({
        "name": "m", "version": "1", "licence": "", "description": "", "modality": "unknown",
        "polarity": "unknown", "pixel_size_um": 0.5, "z_offsets_um": (0.0,), "high_pass_um": 0,
        "labels": [{"name": name, "marker": ""} for name in LABELS], "min_tile_px": 8, "halo_px": 0,
        "size_step_px": 8, "trained_on": "", "gate": limits if gate else None,
    })  # fmt: skip
    return Labels([RunModel("", manifest)])


def remarks(when: dict[str, Any], *, times: int = 1, gate: bool = False, **other: Any) -> list[str]:
    """What is said of a trigger: its level and text."""
    trigger = {"name": "t", "when": when, "do": {"kind": "image", "channels": ["DAPI"], "exposure_ms": 20}}
    overview: dict[str, Any] = {
        "channels": [{"config": "Phase", "exposure": 10}],
        "grid_plan": {"rows": 2, "columns": 2},
    }
    if times > 1:
        overview["time_plan"] = {"interval": 60, "loops": times}
    keys = {each: other.pop(each) for each in ("choose", "schedule", "revisit") if each in other}
    raw = {"name": "x", "overview": overview, "triggers": [trigger | other], **keys}
    experiment = Experiment.model_validate(raw)
    found = explain(experiment, plan_without_scope(experiment), labels(gate)).lints
    return [f"{each.level}: {each}" for each in found]


def count(**sides: Any) -> dict[str, Any]:
    return {"measurement": {"kind": "object_count", "label": "nuclei"}, **sides}


def share(**sides: Any) -> dict[str, Any]:
    return {"measurement": {"kind": "area_fraction", "label": "nuclei"}, **sides}


AREA, CHANGE = {"area": {"label": "nuclei"}}, {"change": {"of": {"kind": "object_count", "label": "nuclei"}}}
NOT_KNOWN = "error: the trigger 't' can never act: change since the last visit of number .* one time point"
FOUND: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"all": [count(above=5), count(below=3)]}, {}, "error: the trigger 't' is contradictory: "),
    ({"all": [count(above=5), {"not": count(above=4)}]}, {}, "error: .* is contradictory"),
    ({"all": [count(above=5), count(below=5)]}, {}, "error: .* is contradictory"),
    (share(above=20), {}, "error: .* can never act: .* never above 2000.*fraction from 0 to 1.*fractions"),
    (count(below=0), {}, "error: .* can never act: .* is never below 0"),
    (count(above=-1), {}, "warning: the trigger 't' acts on every field: always"),
    ({"any": [count(above=5), {"not": count(above=5)}]}, {}, "warning: .* acts on every field"),
    ({"any": [count(above=5), share(above=2)]}, {}, "warning: .* an alternative that can never hold: area"),
    ({"measurement": AREA, "above": 20}, {}, "warning: .* gives no unit: .*20.0 um2.*unit: um2 .or mm2"),
    ({**count(above=1), "for": 3}, {"times": 2}, "error: .* can never act: wanted for 3 .* 2 time points"),
    ({"measurement": CHANGE, "above": 1}, {}, NOT_KNOWN),
    (count(above=1, hysteresis=1), {}, "warning: .* has a hysteresis"),
    (count(above=1), {"scope": "well"}, "warning: .* no position is named as a well is"),
    ({"measurement": {"kind": "object_count", "label": "dead"}, "above": 1}, {},
     "error: .* there is no label 'dead'; the model predicts nuclei, axons"),
    ({"measurement": {"kind": "density", "label": "axons"}, "above": 1}, {}, "error: .* are a network"),
    ({"measurement": {"kind": "novelty"}, "above": 0.5}, {}, "error: .* the model has no gate"),
    (count(above=1), {"schedule": {"kind": "rate", "per_h": 1}}, "warning: schedule has nothing to decide"),
    (count(above=1), {"choose": {"k": 1, "measurement": CHANGE}}, "error: choose can rank nothing"),
    (count(above=1), {"choose": {"k": 1, "measurement": AREA}}, "warning: choose names fields, and nothing"),
]  # fmt: skip


@pytest.mark.parametrize("when, other, says", FOUND)
def test_what_is_odd_is_said(when: dict[str, Any], other: dict[str, Any], says: str) -> None:
    import re

    found = remarks(when, **other)
    assert any(re.match(says, remark) for remark in found), found


FINE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (count(above=5), {}),
    (share(above=0.2), {}),
    ({"all": [count(above=3), count(below=5)]}, {}),
    ({"measurement": AREA, "above": 20, "unit": "um2"}, {}),
    ({"measurement": CHANGE, "above": 1}, {"times": 2}),
    ({**count(above=1, hysteresis=1), "for": 2}, {"times": 2}),
    (share(above=2), {"scope": "run", "statistic": "sum"}),
    ({"measurement": {"kind": "novelty"}, "above": 0.5}, {"gate": True}),
]


@pytest.mark.parametrize("when, other", FINE)
def test_nothing_is_said_of_what_makes_sense(when: dict[str, Any], other: dict[str, Any]) -> None:
    assert remarks(when, **other) == []


def test_light_at_worst_is_that_of_every_rule() -> None:
    experiment = Experiment.model_validate({
        "name": "x",
        "overview": {
            "channels": [{"config": "Phase", "exposure": 10}],
            "grid_plan": {"rows": 2, "columns": 2},
            "z_plan": {"range": 4, "step": 1},
            "time_plan": {"interval": 60, "loops": 3},
        },
        "choose": {"k": 2, "measurement": AREA},
        "revisit": {"channels": [{"config": "MAP2", "exposure": 30}]},
        "triggers": [
            {"when": count(above=5), "at_most": 4,
             "do": {"kind": "image", "channels": ["DAPI"], "exposure_ms": 20, "z_offsets_um": [-1, 0, 1]}},
        ],
    })  # fmt: skip
    costs = explain(experiment, plan_without_scope(experiment), None).costs
    assert [(c.rule, c.channel, c.ms_per_field, c.times) for c in costs] == [
        ("overview", "Phase", 50.0, 12), ("trigger 'trigger'", "DAPI", 60.0, 4), ("choose", "MAP2", 30.0, 6),
    ]  # fmt: skip
