"""What cannot be trusted is proposed, not done; what chance decides is logged; a late decision is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acq_isl.errors import ExperimentError
from acq_isl.events import Decided
from acq_isl.experiment.experiment import Experiment
from acq_isl.rules.trusted import is_drawn
from acq_isl.session.replay import compare_rules
from acq_isl.session.trust import CHECK, GUARD, check_settings, check_stacks
from acq_isl.session.verify import verify_run
from acq_isl.stack import Distance, Prediction, StackKey, StackRequest, Uint16Image
from acq_isl.storage.decision_log import read
from doubles.run_folder import TEXT, Scope, SmallRun, index_of, predict

CHECKS = "spot_checks: {share: 1.0, truth: {nuclei: DAPI}, at_least: {r: 0.5}, exposure_ms: 5}\n"
LOW = TEXT.replace("above: 0.45", "above: 0.05").replace("at_most: 2", "at_most: 9")


def stain_like(sign: float) -> Callable[[StackRequest], Uint16Image]:
    """A stain that shows what is predicted, or its negative."""

    def images(request: StackRequest) -> Uint16Image:
        made = predict(replace(request, z_um=(0.0,))).mean[0]
        return (3000 + sign * 5000 * (made - made.mean())).astype(np.uint16)[np.newaxis]

    return images


def lines(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    return [line for line in read(folder / "decisions.jsonl") if line["kind"] in kinds]


def holds(folder: Path) -> bool:
    return not [each for each in verify_run(folder) if each.state == "differs"]


def test_a_model_that_passes_its_checks_acts(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", LOW + CHECKS, Scope(stain=stain_like(+1)))
    run.run()
    assert [round(line["r"], 3) for line in lines(run.folder, "spot_check")] == [1.0] * 6
    assert not lines(run.folder, "trust", "proposed")
    assert sum(line["done"] == "done" for line in lines(run.folder, "decision")) == 6
    assert sum(line["chosen"] for line in lines(run.folder, "choice")) == 2
    assert holds(run.folder)


def test_a_model_that_fails_its_checks_only_proposes_from_then_on(tmp_path: Path) -> None:
    text = LOW.replace("label: dendrites", "label: nuclei") + CHECKS
    run = SmallRun(tmp_path / "run", text, Scope(stain=stain_like(-1)))
    session = run.run()
    (trust,) = lines(run.folder, "trust")
    assert (
        trust["state"] == "propose only" and "below 0.5 of the last 3 spot checks of nuclei" in trust["why"]
    )
    acted, proposed = lines(run.folder, "decision"), lines(run.folder, "proposed")
    assert all(line["n"] < trust["n"] for line in acted) and all(line["n"] > trust["n"] for line in proposed)
    assert len(acted) + len(proposed) == 6 and len(proposed) >= 2
    assert proposed[0]["what"].startswith("image this field") and proposed[0]["done"].startswith(
        "proposed: r = "
    )
    choices = lines(run.folder, "choice")
    assert not any(line["chosen"] for line in choices)
    assert sum(line["reason"].startswith("Proposed only") for line in choices) == 2
    assert {stack.preset for stack in run.scope.taken} == {"Phase", "DAPI"}, "nothing was revisited in MAP2"
    told = [event for event in run.events if isinstance(event, Decided)]
    assert any(event.done.startswith("proposed: ") for event in told)
    assert any("only proposed from now on" in event.what for event in told)
    assert any("only proposed from now on" in warning for warning in session.warnings)
    assert holds(run.folder)
    own = compare_rules(run.folder, run.folder / "experiment.yaml")
    assert {change.kind for change in own.changes} == {"kept"}, "replay knows that it was demoted"
    assert own.after.proposed >= own.before.proposed > 0


def test_what_looks_unlike_the_training_set_is_proposed(tmp_path: Path) -> None:
    def answer(request: StackRequest) -> Prediction:
        far = 9.0 if index_of(request) == 1 else 1.0
        return replace(predict(request), distances=(Distance("features", far, 4.0),))

    run = SmallRun(tmp_path / "run", scope=Scope(answer))
    run.run()
    (line,) = lines(run.folder, "proposed")
    assert line["key"]["position"] == "p00_001" and "features 9 (limit 4)" in line["done"]
    done = [line["key"]["position"] for line in lines(run.folder, "decision") if line["done"] == "done"]
    assert done == ["p00_003", "p00_004"], "a proposal does not use up what the trigger may do"
    chosen = {line["key"]["position"]: line["reason"] for line in lines(run.folder, "choice")}
    assert chosen["p00_001"].startswith("Proposed only (the stack looks unlike")
    assert {stack.key.position for stack in run.scope.taken if stack.preset == "MAP2"} == {"p00_003"}
    assert holds(run.folder)


def test_a_decision_after_its_deadline_is_told_and_not_done(tmp_path: Path) -> None:
    clock = iter(range(0, 100_000, 10))  # every look takes ten seconds
    text = TEXT.replace("at_most: 2", "at_most: 2\n    deadline_s: 5")
    run = SmallRun(tmp_path / "run", text)
    run.run({"now": lambda: float(next(clock))})
    late = lines(run.folder, "late")
    assert [line["key"]["position"] for line in late] == ["p00_001", "p00_003", "p00_004"]
    assert "too late" in late[0]["done"] and "the deadline is 5 s" in late[0]["done"]
    assert "DAPI" not in {stack.preset for stack in run.scope.taken}
    assert holds(run.folder)


def test_a_share_of_the_fields_is_visited_whatever_the_rules_say(tmp_path: Path) -> None:
    run = SmallRun(tmp_path / "run", TEXT + "bias_guard: {share: 0.5, seed: 3}\n")
    run.run()
    keys = [StackKey(0, f"p00_00{n}", "Phase") for n in range(6)]
    drawn = {key.position for key in keys if is_drawn(GUARD, 3, 0.5, key)}
    assert 0 < len(drawn) < 6
    guarded = lines(run.folder, "guard")
    assert {line["key"]["position"] for line in guarded} == drawn
    assert {line["probability"] for line in guarded} == {0.5}
    visited = {(line["key"]["position"], line["why"]) for line in lines(run.folder, "visit")}
    assert {place for place, why in visited if why == GUARD} == drawn
    stained = {stack.key.position for stack in run.scope.taken if stack.preset == "MAP2"}
    assert stained == drawn | {"p00_001", "p00_003"}
    assert holds(run.folder)


@pytest.mark.parametrize(
    "text, told",
    [
        ("spot_checks: {share: 0.1, truth: {nuclei: DAPI}, at_least: {}}", "give r, f1, or both"),
        ("spot_checks: {share: 0.1, at_least: {r: 0.5}}", "which preset shows which label"),
        (
            "spot_checks: {share: 0.1, at_least: {r: 0.5}, truth: {nuclei: DAPI}}",
            "how long spot checks expose",
        ),
        ("spot_checks: {share: 2, at_least: {r: 0.5}}", "spot_checks.share"),
        ("bias_guard: {share: 0.1}", "no revisit"),
    ],
)
def test_what_cannot_be_done_is_told_before_the_run(text: str, told: str) -> None:
    plain = TEXT.replace("revisit: {channels: [{config: MAP2, exposure: 50}]}", "")
    field = StackRequest(StackKey(0, "A1", "Phase"), 0, 0, (0.0,), "Channel", "Phase", 10)
    with pytest.raises(ExperimentError, match=told):
        experiment = Experiment.from_text(plain + text)
        check_settings(experiment)
        check_stacks(experiment, field)


def test_a_check_is_exposed_like_the_revisit_unless_it_says_otherwise() -> None:
    text = TEXT + "spot_checks: {share: 0.1, at_least: {f1: 0.5}, truth: {dendrites: MAP2}}"
    field = StackRequest(StackKey(2, "A1", "Phase"), 7, 8, (-1.0, 0.0, 3.0), "Channel", "Phase", 10)
    (stack,) = check_stacks(Experiment.from_text(text), field)
    assert (stack.key, stack.exposure_ms, stack.z_um) == (StackKey(2, "A1", "MAP2"), 50.0, (1.0,))
    assert not stack.predict and CHECK
