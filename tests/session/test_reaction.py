"""A decision acts between two slices of the stack that is being acquired, on instruments one can read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Optics, Place, cycles
from acq_isl.rules import Decision
from acq_isl.session.session import Session, SessionTools
from acq_isl.stack import Outcome, Prediction, StackInfo, StackKey, StackRequest, Uint16Image
from acq_isl.storage.decision_log import Ledger, read

EXPERIMENT = """
name: test
overview:
  grid_plan: {{rows: 1, columns: 3, mode: row_wise}}
  z_plan: {{range: 4, step: 1}}
  channels: [{{config: Phase, exposure: 10}}]
triggers:
  - when: {{measurement: {{kind: mean_intensity, label: nuclei}}, above: 0.5}}
    do: {{kind: image, channels: [DAPI], exposure_ms: 5}}
    at_most: {at_most}
    react: {react}
"""
SLICE, STACK = "{within: slice}", "{within: stack}"
REPEAT = "{within: slice, then: repeat}"


class Scope:
    """Notes every slice; the prediction of a stack comes after ``late`` further slices."""

    def __init__(self, late: int) -> None:
        self.log: list[str] = []
        self.discarded: list[StackKey] = []
        self._late = late
        self._coming: list[tuple[int, Outcome]] = []

    def acquire(self, request: StackRequest) -> None:
        self.acquire_until(request, None)

    def acquire_until(self, request: StackRequest, stop: Callable[[], bool] | None, first: int = 0) -> int:
        key = request.key
        again = f" attempt {request.attempt}" if request.attempt else ""
        for z in range(first, len(request.z_um)):
            if stop is not None and stop():
                return z
            self.log.append(f"{key.channel} {key.position[-1]} z{z}{again}")
        if request.predict:
            info = StackInfo(key, request.z_um, (8, 8), 0.3, request.x_um, request.y_um)
            mean = np.full((1, 8, 8), 0.9, np.float32)
            made = Prediction(info, ("nuclei",), mean, np.zeros_like(mean), "0" * 64, "fake", "fake")
            self._coming.append((len(self.log) + self._late, made))
        return len(request.z_um)

    def set_preset(self, group: str, preset: str) -> None:
        raise AssertionError("nobody asks for it")

    def images(self, request: StackRequest) -> Uint16Image:
        raise AssertionError("the session does not read images back")

    def poll(self) -> list[Outcome]:
        ready = [made for at, made in self._coming if at <= len(self.log)]
        self._coming = [(at, made) for at, made in self._coming if at > len(self.log)]
        return ready

    def drain(self, timeout_s: float) -> list[Outcome]:
        ready, self._coming = [made for _, made in self._coming], []
        return ready


def run(folder: Path, react: str, late: int = 2, at_most: int = 1) -> tuple[Scope, Session]:
    experiment = Experiment.from_text(EXPERIMENT.format(react=react, at_most=at_most))
    plan = cycles(experiment.overview, Place(0.0, 0.0, 0.0, (10.0, 10.0)), Optics())
    scope = Scope(late)

    def call(name: str, decision: Decision, prediction: Prediction) -> str:
        raise AssertionError("nobody asks for it")

    with Ledger(folder / "decisions.jsonl") as ledger:
        store = type("Store", (), {"put": lambda self, prediction: None})()
        tools = SessionTools(
            scope,
            scope,
            store,
            ledger,
            call,
            lambda event: None,
            discard=lambda key, _: scope.discarded.append(key),
        )
        session = Session(experiment, plan, tools)
        session.run()
    return scope, session


def slices(channel: str, field: int, first: int = 0, last: int = 4, again: str = "") -> list[str]:
    return [f"{channel} {field} z{z}{again}" for z in range(first, last + 1)]


IMAGE = ["DAPI 0 z0"]
WAYS = {
    "the stack under way ends first": (STACK, [*slices("Phase", 1), *IMAGE, *slices("Phase", 2)]),
    "it is finished afterwards": (
        SLICE,
        [*slices("Phase", 1, 0, 1), *IMAGE, *slices("Phase", 1, 2), *slices("Phase", 2)],
    ),
    "it is imaged again": (
        REPEAT,
        [*slices("Phase", 1, 0, 1), *IMAGE, *slices("Phase", 1, again=" attempt 1"), *slices("Phase", 2)],
    ),
}


@pytest.mark.parametrize("react, order", WAYS.values(), ids=WAYS)
def test_an_action_interrupts_the_stack_under_way(tmp_path: Path, react: str, order: list[str]) -> None:
    scope, session = run(tmp_path, react)
    assert scope.log == [*slices("Phase", 0), *order]
    doses = [line for line in read(tmp_path / "decisions.jsonl") if line["kind"] == "dose"]
    assert sum(line["slices"] for line in doses) == len(scope.log), "all light is in the ledger"
    assert len(session.acquired) == 4 and {field.status for field in session.fields.values()} == {"predicted"}
    told = [line for line in read(tmp_path / "decisions.jsonl") if line.get("rule") == "react"]
    assert len(told) == (react != STACK)
    if react == REPEAT:
        assert scope.discarded == [StackKey(0, "p00_001", "Phase")]
        assert session.fields[scope.discarded[0]].request.attempt == 1, "where its images are"


def test_one_stack_may_be_interrupted_at_every_slice_and_is_still_whole(tmp_path: Path) -> None:
    scope, session = run(tmp_path, SLICE, late=0, at_most=3)
    phase = [line for line in scope.log if line.startswith("Phase")]
    assert phase == [*slices("Phase", 0), *slices("Phase", 1), *slices("Phase", 2)]
    assert [line for line in scope.log if line.startswith("DAPI")] == [f"DAPI {n} z0" for n in range(3)]
    assert not session.warnings


def test_a_stack_is_not_imaged_again_against_a_budget_of_light(tmp_path: Path) -> None:
    """Five planes of 10 ms, two of them taken: 70 ms with a second attempt, where 60 are allowed."""
    budget = "{per: field, presets: [Phase], ms: 60}"
    react = f"{REPEAT}\nlimits: {{light: {{budgets: [{budget}]}}}}"
    scope, _ = run(tmp_path, react)
    assert scope.log == [*slices("Phase", 0), *WAYS["it is finished afterwards"][1]]
    assert not scope.discarded
    (told,) = [line for line in read(tmp_path / "decisions.jsonl") if line.get("rule") == "react"]
    assert told["done"] == "the others follow"
