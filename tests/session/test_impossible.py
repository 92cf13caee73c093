"""Rules that can never act, contradict themselves or ask too much: told by explain and by the dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from acq_isl.cli.app import main
from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment
from acq_isl.session.checks import Camera
from acq_isl.session.explain import lint, plan_without_scope
from acq_isl.session.functions import lint_functions
from acq_isl.session.preflight import check_models, local_labels
from acq_isl.session.sense import find_doubts, refuse_errors

CAMERA = Camera((512, 512), 0.325)
COUNT = {"kind": "object_count", "label": "nuclei"}
IMAGE = {"kind": "image", "channels": ["DAPI"], "exposure_ms": 20}
CHANGE = {"change": {"of": COUNT}}


def experiment(**changes: Any) -> dict[str, Any]:
    """A sensible experiment with some keys changed, ``do__kind`` inside its trigger, times and wells."""
    times, wells = changes.pop("times", 1), changes.pop("wells", ())
    overview: dict[str, Any] = {
        "channels": [{"config": "Phase", "exposure": 10}],
        "z_plan": {"range": 18, "step": 1.5},
    }
    if wells:
        overview["stage_positions"] = [{"x": 300 * n, "y": 0, "z": 0, "name": w} for n, w in enumerate(wells)]
    else:
        overview["grid_plan"] = {"rows": 1, "columns": 4}
    if times > 1:
        overview["time_plan"] = {"interval": 60, "loops": times}
    trigger = {"name": "t", "when": {"measurement": COUNT, "above": 5}, "do": IMAGE}
    trigger |= {
        key: changes.pop(key) for key in ("when", "do", "at_most", "scope", "statistic") if key in changes
    }
    raw = {"name": "x", "microscope": {"kind": "simulated"}, "overview": overview, "triggers": [trigger]}
    raw["optics"] = {"modality": "phase contrast", "polarity": "dark"}
    return raw | changes


def budget(ms: float, *presets: str, per: str = "field") -> dict[str, Any]:
    return {"light": {"budgets": [{"per": per, "presets": list(presets), "ms": ms}]}}


def choose(**keys: Any) -> dict[str, Any]:
    return {"choose": keys, "revisit": {"channels": [{"config": "DAPI", "exposure": 20}]}}


W, D, REVISIT = "triggers.0.when", "triggers.0.do", {"channels": [{"config": "DAPI", "exposure": 20}]}
# What is changed, key at which it is told, what is said; error or warning as told (E or W).
CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "preset not allowed": ({"limits": {"presets": {"Channel": ["Phase"]}}}, D, "got: DAPI", "E"),
    "exposure not allowed": ({"limits": {"exposure_ms": 15}}, D, "at most 15 ms", "E"),
    "plane not allowed": (
        {"do": IMAGE | {"z_offsets_um": [99]}, "limits": {"z_um": [-50, 50]}},
        D,
        "z from -50 to 50 um",
        "E",
    ),
    "property not listed": (
        {"do": {"kind": "set_property", "device": "Valve", "name": "State", "value": "1"}},
        D,
        "Valve.State",
        "E",
    ),
    "place not allowed": (
        {"do": {"kind": "move", "to_um": [9e4, 0]}, "limits": {"x_um": [-2000, 2000]}},
        D,
        "90000 um",
        "E",
    ),
    "nobody may be told": (
        {"do": {"kind": "notify", "webhook": "https://example.org/x"}},
        D,
        "nobody is told",
        "E",
    ),
    "budget below one action": ({"limits": budget(19, "DAPI")}, D, "at most 19 ms", "E"),
    "budget spent by the overview": (
        {"limits": budget(130 * 4 + 1, "Phase", "DAPI", per="run")},
        "",
        "",
        "fine",
    ),
    "budget of fields spent by the overview": (
        {"limits": budget(140, "Phase", "DAPI")},
        D,
        "130 ms spent",
        "E",
    ),
    "budget below the overview": (
        {"limits": budget(100, "Phase")},
        "limits.light.budgets",
        "overview alone",
        "E",
    ),
    "budget below the revisit": (
        {"triggers": [], **choose(k=1, measurement=COUNT), "limits": budget(5, "DAPI")},
        "revisit",
        "5 ms",
        "E",
    ),
    "budget of nothing": (
        {"limits": budget(5, "MAP2")},
        "limits.light.budgets.0.presets",
        "never holds",
        "W",
    ),
    "preset of the overview": ({"do": IMAGE | {"channels": ["Phase"]}}, f"{D}.channels", "images Phase", "E"),
    "label to centre": (
        {"do": {"kind": "centre", "label": "mitochondria", "channels": ["DAPI"], "exposure_ms": 9}},
        f"{D}.label",
        "no label 'mitochondria'",
        "E",
    ),
    "centre of a network": (
        {"do": {"kind": "centre", "label": "axons", "channels": ["DAPI"], "exposure_ms": 9}},
        f"{D}.label",
        "no objects",
        "E",
    ),
    "interval of one time point": (
        {"do": {"kind": "change", "interval_s": 9}},
        f"{D}.interval_s",
        "never",
        "E",
    ),
    "nothing left to change": (
        {"do": {"kind": "change", "exposure_ms": 9}, "wells": ["p"]},
        D,
        "no stack of the overview follows",
        "E",
    ),
    "channels that are not there": (
        {"do": {"kind": "change", "channels": ["DAPI"]}},
        f"{D}.channels",
        "only channels",
        "E",
    ),
    "all channels": (
        {"do": {"kind": "change", "channels": ["Phase"]}},
        f"{D}.channels",
        "changes nothing",
        "W",
    ),
    "nothing around": (
        {"do": IMAGE | {"kind": "tile", "rows": 1, "columns": 1}},
        f"{D}.rows",
        "nothing around",
        "W",
    ),
    "no stack": (
        {"do": IMAGE | {"kind": "z_stack", "range_um": 1, "step_um": 5}},
        f"{D}.step_um",
        "one plane",
        "W",
    ),
    "contradiction": (
        {"when": {"all": [{"measurement": COUNT, "above": 5}, {"measurement": COUNT, "below": 3}]}},
        W,
        "contradictory",
        "E",
    ),
    "per cent": (
        {"when": {"measurement": {"kind": "confluency", "label": "nuclei"}, "above": 20}},
        W,
        "never",
        "E",
    ),
    "novelty that is refused": (
        {"when": {"measurement": {"kind": "novelty"}, "above": 1}},
        W,
        "can never act",
        "E",
    ),
    "quality that is refused": (
        {"when": {"measurement": {"kind": "quality"}, "below": 0}},
        W,
        "can never act",
        "E",
    ),
    "eccentricity": (
        {"when": {"measurement": {"kind": "object", "label": "nuclei", "what": "eccentricity"}, "above": 1}},
        W,
        "can never act",
        "E",
    ),
    "brightness": (
        {"when": {"measurement": COUNT | {"above": 300}, "above": 5}},
        W,
        "brighter than 300",
        "E",
    ),
    "more visits than time points": (
        {"when": {"measurement": COUNT, "above": 5, "for": 4}, "times": 3},
        W,
        "4 visits in a row",
        "E",
    ),
    "change of one visit": ({"when": {"measurement": CHANGE, "above": 5}}, W, "one time point", "E"),
    "hysteresis without end": (
        {"when": {"measurement": COUNT, "above": 5, "hysteresis": 9}, "times": 3},
        W,
        "never ends once it holds",
        "W",
    ),
    "wells without wells": ({"scope": "well"}, "triggers.0.scope", "named as a well", "W"),
    "statistic of a field": ({"statistic": "max"}, "triggers.0.statistic", "no effect", "W"),
    "more than there are": (choose(k=9, measurement=COUNT), "choose.k", "more fields are to be chosen", "E"),
    "all weights 0": (
        choose(kind="weighted", k=1, terms=[{"measurement": COUNT}, {"measurement": COUNT, "weight": -1}]),
        "choose.terms",
        "weights come to 0",
        "E",
    ),
    "against itself": (
        choose(
            kind="pareto", k=1, goals=[{"measurement": COUNT}, {"measurement": COUNT, "descending": False}]
        ),
        "choose.goals",
        "against itself",
        "W",
    ),
    "quota without wells": (
        choose(kind="quota", each=1, measurement=COUNT),
        "choose.each",
        "they are one",
        "W",
    ),
    "quota of fewer than the wells": (
        {"wells": ["A1", "A2", "A3"], **choose(kind="quota", each=1, k=2, measurement=COUNT)},
        "choose.k",
        "leaves out wells",
        "W",
    ),
    "everything is chosen": (choose(k=4, measurement=COUNT), "choose", "every field is chosen", "W"),
    "choice of nothing": ({"choose": {"k": 1, "measurement": COUNT}}, "revisit", "nothing is done", "W"),
    "revisit of the overview": (
        {
            "choose": {"k": 1, "measurement": COUNT},
            "revisit": {"channels": [{"config": "Phase", "exposure": 9}]},
        },
        "revisit",
        "images Phase again",
        "E",
    ),
    "revisit not allowed": (
        {"triggers": [], **choose(k=1, measurement=COUNT), "limits": {"exposure_ms": 15}},
        "revisit",
        "15 ms",
        "E",
    ),
    "overview not allowed": ({"limits": {"exposure_ms": 5}, "triggers": []}, "overview", "at most 5 ms", "E"),
    "rate slower than the run": (
        {"schedule": {"kind": "rate", "per_h": 1}, "times": 3},
        "schedule.per_h",
        "never image a field again",
        "E",
    ),
    "deadlines after the run": (
        {"schedule": {"kind": "queue", "fields": 1, "within_s": 3600}, "times": 3},
        "schedule.within_s",
        "never come",
        "W",
    ),
    "queue of all": (
        {"schedule": {"kind": "queue", "fields": 4, "within_s": 60}, "times": 3},
        "schedule.fields",
        "decide",
        "W",
    ),
    "others never": (
        {
            "schedule": {"kind": "when", "when": {"measurement": COUNT, "above": 1}, "else_every": 5},
            "times": 3,
        },
        "schedule.else_every",
        "never looks",
        "W",
    ),
    "left out too long": (
        {"schedule": {"kind": "budget", "time_s": 9, "measurement": COUNT, "at_least_every": 5}, "times": 3},
        "schedule.at_least_every",
        "never lets",
        "W",
    ),
    "schedule of one time point": (
        {"schedule": {"kind": "rate", "per_h": 60}},
        "schedule",
        "nothing to decide",
        "W",
    ),
    "guard of nothing": ({"bias_guard": {"share": 0.5}}, "bias_guard", "has no revisit", "E"),
    "guard that never draws": (
        {"bias_guard": {"share": 1e-9}, **choose(k=1, measurement=COUNT)},
        "bias_guard.share",
        "never draw",
        "W",
    ),
    "checks of nothing": (
        {"spot_checks": {"share": 0.5, "at_least": {"r": 0.5}}},
        "spot_checks",
        "which preset shows",
        "E",
    ),
    "checks without exposure": (
        {"spot_checks": {"share": 1, "at_least": {"r": 0.5}, "truth": {"nuclei": "DAPI"}}},
        "spot_checks",
        "how long spot checks expose DAPI",
        "E",
    ),
    "too few checks": (
        {
            "spot_checks": {
                "share": 1,
                "least": 8,
                "at_least": {"r": 0.5},
                "truth": {"nuclei": "DAPI"},
                "exposure_ms": 20,
            }
        },
        "spot_checks.least",
        "can never judge",
        "W",
    ),
    "truth nobody images": ({"truth": {"nuclei": "NFH"}}, "truth.nuclei", "never images", "E"),
    "nobody predicts": ({"engine": {"kind": "none"}}, "engine", "never decide", "W"),
    "no such function": (
        {"do": {"kind": "call", "function": "nowhere_at_all:act"}},
        f"{D}.function",
        "cannot be imported",
        "E",
    ),
}


@pytest.fixture(scope="module")
def labels():
    return local_labels(Experiment.model_validate(experiment()))


@pytest.mark.parametrize("changes, key, says, level", CASES.values(), ids=CASES.keys())
def test_it_is_told_with_its_key_before_the_run(
    labels, changes: dict[str, Any], key: str, says: str, level: str
) -> None:
    loaded = Experiment.model_validate(experiment(**dict(changes)))
    plan = plan_without_scope(loaded)
    found = (*lint_functions(loaded), *lint(loaded, plan, labels))
    if level == "fine":
        assert not found
        return
    at = [remark for remark in found if remark.key == key and says in remark.text]
    assert [remark.level[0].upper() for remark in at][:1] == [level], [str(each) for each in found]
    assert any(remark.level == "error" for remark in found) == (level == "E"), "nothing else is wrong with it"
    try:  # what the dry run says, once it has the microscope
        doubts = (*find_doubts(loaded, plan, CAMERA), *refuse_errors(lint_functions(loaded)))
        doubts += check_models(loaded, plan, labels, CAMERA)
    except ExperimentError as error:
        doubts = (str(error),)
        assert level == "E"
    assert any(says in doubt and f"(at {key})" in doubt for doubt in doubts), doubts


# What the file's own model refuses: explain and the dry run both read the file first.
REFUSED = {
    "at_most: 0": ({"at_most": 0}, "triggers.0.at_most"),
    "k: 0": (choose(k=0, measurement=COUNT), "choose.k"),
    "budget of 0": ({"limits": budget(0, "DAPI")}, "limits.light.budgets.0.ms"),
    "empty between": ({"when": {"measurement": COUNT, "between": [5, 5]}}, "triggers.0.when"),
    "another kind of unit": ({"when": {"measurement": COUNT, "above": 5, "unit": "um2"}}, "triggers.0.when"),
    "stage range": ({"limits": {"x_um": [5, 1]}}, "limits"),
    "rates": ({"schedule": {"kind": "rate", "per_h": 0}}, "schedule.rate.per_h"),
    "share of checks": ({"spot_checks": {"share": 0, "at_least": {"r": 0.5}}}, "spot_checks.share"),
    "checks": ({"spot_checks": {"share": 1, "least": 9, "at_least": {"r": 0.5}}}, "spot_checks"),
    "no number of images": ({"do": IMAGE | {"times": 0}}, "triggers.0.do"),
    "in a row": ({"on_failure": {"kind": "skip", "in_a_row": 0}}, "on_failure.skip.in_a_row"),
}


@pytest.mark.parametrize("changes, key", REFUSED.values(), ids=REFUSED.keys())
def test_what_the_file_cannot_say_is_refused_with_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ExperimentError, match=key.replace(".", r"\.")):
        Experiment.from_text(yaml.safe_dump(experiment(**dict(changes))))


def test_explain_ends_with_2_and_names_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wörong file.yaml"
    file.write_text(yaml.safe_dump(experiment(limits={"exposure_ms": 15})), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["acq-isl", "explain", str(file)])
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main())
    assert ended.value.code == 2
    assert "triggers.0.do" in capsys.readouterr().out
