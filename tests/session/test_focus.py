"""Where the focus of a site is known, and what becomes of a stack where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from acq_isl.errors import ExperimentError, FocusFailed
from acq_isl.events import Decided, FieldFailed
from acq_isl.experiment.experiment import Experiment, FocusPolicy
from acq_isl.experiment.planning import Optics, Place, cycles
from acq_isl.rules.label_names import Labels
from acq_isl.session.focus import FocusKeeper
from acq_isl.session.session import Session, SessionTools
from acq_isl.stack import Autofocus, Outcome, StackKey, StackRequest, Uint16Image
from acq_isl.storage.decision_log import Ledger, read


class Scope:
    """Finds the focus ``moved_um`` above where it was planned, and not at the sites in ``lost``."""

    def __init__(self) -> None:
        self.moved_um = 0.0
        self.lost: set[str] = set()
        self.looked: list[float] = []
        self.imaged: list[StackRequest] = []

    def focus(self, request: StackRequest) -> float:
        assert request.autofocus is not None
        self.looked.append(request.autofocus.z_um)
        if request.key.position in self.lost:
            raise FocusFailed("no reflection")
        return 10.0 + self.moved_um

    def acquire(self, request: StackRequest) -> None:
        self.imaged.append(request)

    def set_preset(self, group: str, preset: str) -> None:
        raise AssertionError("no preset is set")

    def images(self, request: StackRequest) -> Uint16Image:
        raise AssertionError("no image is read back")

    def poll(self) -> list[Outcome]:
        return []

    def drain(self, timeout_s: float) -> list[Outcome]:
        return []

    def put(self, prediction: object) -> None:
        raise AssertionError("nothing is predicted")


def stack(*, due: bool, channel: str = "Phase", position: str = "A1", site: str = "A1") -> StackRequest:
    key = StackKey(0, position, channel)
    focus = Autofocus(site, 10.0, due)
    return StackRequest(key, 0.0, 0.0, (9.0, 10.0, 11.0), "Channel", channel, 5.0, autofocus=focus)


def keep(scope: Scope, policy: FocusPolicy = "skip") -> tuple[FocusKeeper, list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    return FocusKeeper(scope, policy, lambda request, what, why: told.append((str(request.key), what))), told


def test_all_stacks_of_a_site_are_imaged_about_the_focus_found_last() -> None:
    scope = Scope()
    keeper, told = keep(scope)
    for moved_um in (2.0, 3.5):
        scope.moved_um = moved_um
        first, other = keeper.find(stack(due=True)), keeper.find(stack(due=False, channel="DAPI"))
        assert first is not None and other is not None
        assert first.z_um == other.z_um == (9.0 + moved_um, 10.0 + moved_um, 11.0 + moved_um)
        assert first.autofocus is other.autofocus is None  # a trigger at this field need not focus again
    assert scope.looked == [10.0, 12.0]  # it is looked for where it was
    assert not told


def test_a_run_that_is_resumed_focuses_where_it_goes_on() -> None:
    scope = Scope()
    scope.moved_um = 2.0
    keeper, _ = keep(scope)
    for channel in ("DAPI", "NFH"):
        found = keeper.find(stack(due=False, channel=channel))
        assert found is not None and found.z_um == (11.0, 12.0, 13.0)
    assert scope.looked == [10.0]


def test_a_field_without_focus_is_skipped_until_it_is_found_again() -> None:
    scope = Scope()
    keeper, told = keep(scope)
    scope.lost = {"A1"}
    assert keeper.find(stack(due=True)) is None
    assert keeper.find(stack(due=False, channel="DAPI")) is None
    scope.lost = set()
    assert keeper.find(stack(due=True)) is not None
    assert keeper.find(stack(due=False, channel="DAPI")) is not None
    assert told == [("A1 t0 Phase", "skip this stack"), ("A1 t0 DAPI", "skip this stack")]


def test_a_run_may_go_on_about_the_focus_of_before() -> None:
    scope = Scope()
    keeper, told = keep(scope, "go_on")
    scope.moved_um = 2.0
    keeper.find(stack(due=True))
    scope.lost = {"A1"}
    found = keeper.find(stack(due=True))
    assert found is not None and found.z_um == (11.0, 12.0, 13.0)
    assert told == [("A1 t0 Phase", "image it all the same")]


def test_a_run_may_stop() -> None:
    scope = Scope()
    keeper, told = keep(scope, "stop")
    scope.lost = {"A1"}
    with pytest.raises(FocusFailed):
        keeper.find(stack(due=True))
    assert told == [("A1 t0 Phase", "stop the run")]


TEXT = """
name: focus
overview:
  stage_positions: [{x: 0, y: 0, z: 10}, {x: 9, y: 0, z: 10}]
  z_plan: {relative: [-1, 0, 1]}
  channels: [{config: Phase, exposure: 10}]
  autofocus_plan: {axes: [p]}
"""
IMAGED = {"skip": ["p01"], "go_on": ["p00", "p01"], "stop": []}


@pytest.mark.parametrize("policy", list(IMAGED))
def test_ledger_report_and_viewers_are_told(tmp_path: Path, policy: str) -> None:
    scope, events = Scope(), []
    scope.lost, scope.moved_um = {"p00"}, 2.0
    experiment = Experiment.from_text(f"{TEXT}when_focus_fails: {policy}")
    plan = cycles(experiment.overview, Place(0.0, 0.0, 0.0, (10.0, 10.0)), Optics())
    with Ledger(tmp_path / "decisions.jsonl", clock=lambda: 0.0) as ledger:
        tools = SessionTools(
            scope, scope, scope, ledger, lambda *_: "", events.append, now=lambda: 0.0, labels=Labels()
        )
        session = Session(experiment, plan, tools)
        if policy == "stop":
            with pytest.raises(FocusFailed):
                session.run()
        else:
            session.run()
    assert [request.key.position for request in scope.imaged] == IMAGED[policy]
    (event,) = [event for event in events if isinstance(event, Decided)]
    assert (event.rule, event.why) == ("autofocus", "no reflection") and event.key == StackKey(
        0, "p00", "Phase"
    )
    (failed,) = [event for event in events if isinstance(event, FieldFailed)]
    assert (failed.key.position, failed.what, failed.why) == ("p00", event.what, "no reflection")
    (line,) = [line for line in read(tmp_path / "decisions.jsonl") if line["kind"] == "order"]
    assert (line["rule"], line["what"]) == ("autofocus", event.what)
    assert any("its focus was not found" in warning for warning in session.warnings)
    if policy != "stop":
        second = session.fields[StackKey(0, "p01", "Phase")].request
        assert second.z_um == (11.0, 12.0, 13.0)  # where a revisit goes


def test_a_policy_that_is_none_names_those_there_are() -> None:
    with pytest.raises(ExperimentError, match="when_focus_fails"):
        Experiment.from_text(f"{TEXT}when_focus_fails: hope")
