"""Other rules on a run that is over: which decisions come, go and move, and what that costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from acq_isl.errors import ExperimentError
from acq_isl.report.replay_page import render_replay
from acq_isl.session.replay import CHOICE, Act, Change, compare, compare_rules, count
from acq_isl.session.replay_words import make_page
from acq_isl.session.truth import TrueField, read_truth, recall, write_truth
from acq_isl.sim import CellTruth
from acq_isl.stack import Prediction, StackKey, ZStack
from doubles.run_folder import MODEL, SmallRun

OTHER = """
choose: {k: 2, descending: false, measurement: {kind: mean_intensity, label: dendrites}}
revisit: {channels: [{config: MAP2, exposure: 50}, {config: DAPI, exposure: 50}]}
triggers:
  - name: bright
    when: {measurement: {kind: mean_intensity, label: nuclei}, above: 0.55}
    do: {kind: image, channels: [DAPI], exposure_ms: 5}
    at_most: 2
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = SmallRun(tmp_path_factory.mktemp("runs") / "run")
    made.run()
    return made.folder


def rules(folder: Path, text: str) -> Path:
    path = folder / "rules.yaml"
    path.write_text(text)
    return path


def places(changes: tuple[Change, ...], kind: str) -> set[tuple[str, str, str]]:
    return {
        (one.rule, one.before.position if one.before else "", one.after.position if one.after else "")
        for one in changes
        if one.kind == kind
    }


def test_the_run_s_own_rules_change_nothing(run: Path) -> None:
    found = compare_rules(run, run / "experiment.yaml")
    assert {change.kind for change in found.changes} == {"kept"}
    assert found.before.acts == found.after.acts
    assert (found.before.light_ms, found.before.time_s) == (found.after.light_ms, found.after.time_s)


def test_decisions_that_moved_and_their_light_are_told(run: Path, tmp_path: Path) -> None:
    # nuclei: 0.2 0.9 0.1 0.6 0.5 0.3; the run acted at fields 1 and 3, and revisited 1 and 3.
    found = compare_rules(run, rules(tmp_path, OTHER))
    assert places(found.changes, "moved") == {(CHOICE, "p00_001", "p00_002"), (CHOICE, "p00_003", "p00_000")}
    assert places(found.changes, "kept") == {("bright", f"p00_00{n}", f"p00_00{n}") for n in (1, 3)}
    assert found.before.light_ms == 2 * 5 + 2 * 50 and found.after.light_ms == 2 * 5 + 2 * 100
    shown = make_page(run, Path("rules.yaml"), found)
    page = render_replay(shown)
    assert page.count('class="f kept"') == 0  # fields 1 and 3 are kept by the trigger and lost by the choice
    assert page.count('class="f lost"') == 2 and page.count('class="f gained"') == 2
    assert ("their light", "0.11 s", "0.21 s") in shown.table


def key(n: int, time: int = 0) -> StackKey:
    return StackKey(time, f"p{n}", "Phase")


def test_a_decision_at_another_time_point_did_not_move_but_came_and_went() -> None:
    before = [Act(key(1), "a", "x", ()), Act(key(2), "b", "x", ())]
    after = [Act(key(1, time=1), "a", "x", ()), Act(key(2), "b", "x", ())]
    assert count(compare(before, after)) == {"kept": 1, "gained": 1, "lost": 1, "moved": 0}


class Brighter:
    """A model that sees every field as it is measured: 100 counts and the number of the field."""

    def manifests(self) -> dict[str, object]:
        return {"demo": (MODEL.manifest, MODEL.sha256)}

    def predict(self, stack: ZStack, models: tuple[str, ...]) -> list[Prediction]:
        raise AssertionError("there is nothing measured in this run")


def test_of_what_was_not_measured_another_model_says_nothing(run: Path) -> None:
    found = compare_rules(run, run / "experiment.yaml", Brighter())  # type: ignore[arg-type]
    assert found.after.acts == () and {change.kind for change in found.changes} == {"lost"}


def cell(name: str, nuclei: float) -> CellTruth:
    return CellTruth(name, "neuron", 0, 0, 0, 5, 3, "alive", {"nuclei": nuclei})  # type: ignore[arg-type]


def test_recall_counts_wanted_cells_once_a_time_point(tmp_path: Path) -> None:
    write_truth(
        tmp_path,
        {key(1): (cell("a", 0.6), cell("b", 0.1)), key(2): (cell("a", 0.6), cell("c", 0.5)), key(3): ()},
    )
    fields = read_truth(tmp_path)
    assert fields[0] == TrueField(key(1), {"a": {"nuclei": 0.6}, "b": {"nuclei": 0.1}})
    assert recall("nuclei", fields, {(0, "p1")}) == 0.5
    assert recall("nuclei", fields, {(0, "p1"), (0, "p2")}) == 1.0
    assert recall("nuclei", fields, set()) == 0.0


@pytest.mark.parametrize(
    "text, told",
    [
        ("name: x", "holds no rules"),
        ("choose: {k: 2, measurement: {kind: mean_intensity, label: mitochondria}}", "does not predict"),
        ("choose: {k: 2, mesurement: {kind: mean_intensity, label: nuclei}}", "mesurement"),
        ("chose: {k: 2}\ntriggers: []", "did you mean 'choose'"),
    ],
)
def test_rules_that_cannot_be_used_are_told(run: Path, tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        compare_rules(run, rules(tmp_path, text))
