"""A stack at which the microscope fails: left out, taken again, or the end of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from acq_isl.errors import AcquisitionFailed, ScopeError, SliceLost, StorageError
from acq_isl.events import Decided, FieldFailed
from acq_isl.stack import StackRequest
from tests.session.test_session import EXPERIMENT, Bench, FakeMicroscope, prediction


class Failing(FakeMicroscope):
    """Fails as ``script`` says, stack by stack: ``.`` is imaged, ``x`` fails, ``s`` loses a slice."""

    def __init__(self, script: str, returns: bool = True) -> None:
        super().__init__(prediction)
        self._script, self._returns = iter(script), returns
        self.captured = self.recovered = 0
        self._failed = False

    def acquire(self, request: StackRequest) -> None:
        assert not self._failed, "nothing is acquired before it has recovered"
        what = next(self._script, ".")
        self.captured += 1
        if what == ".":
            super().acquire(request)
            return
        self._failed = True
        raise SliceLost("a slice did not arrive") if what == "s" else AcquisitionFailed("the stage is stuck")

    def recover(self) -> None:
        if not self._returns:
            raise ScopeError("the camera is gone")
        self.recovered += 1
        self._failed = False


ALL = ["p00_000", "p00_001", "p00_002", "p00_003"]
SKIP, RETRY = "{kind: skip, in_a_row: 2}", "{kind: retry, times: 2, in_a_row: 2}"
CASES = {  # policy, script of the stacks, positions imaged, what was told, whether the run ends
    "one is left out": ("{}", ".x..", [0, 2, 3], ["skip this stack"], False),
    "by default three in a row end it": ("{}", ".xxx", [0], ["skip this stack"] * 2 + ["the run ends"], True),
    "lost slices too": (SKIP, "s...", [1, 2, 3], ["skip this stack"], False),
    "every other one": (SKIP, "x.x.", [1, 3], ["skip this stack"] * 2, False),
    "two in a row": (SKIP, ".xx.", [0], ["skip this stack", "the run ends"], True),
    "taken again": (RETRY, ".x...", [0, 1, 2, 3], ["take this stack again"], False),
    "in vain": (RETRY, ".xxx..", [0, 2, 3], ["take this stack again"] * 2 + ["skip this stack"], False),
    "the run ends": ("{kind: stop}", ".x..", [0], ["the run ends"], True),
}


def bench(tmp_path: Path, policy: str, scope: Failing) -> Bench:
    given = "" if policy == "{}" else f"on_failure: {policy}\n"
    return Bench(tmp_path, EXPERIMENT.partition("choose:")[0] + given, scope)


def told(of: Bench) -> list[str]:
    return [event.what for event in of.news if isinstance(event, FieldFailed)]


@pytest.mark.parametrize("policy, script, imaged, what, ends", CASES.values(), ids=CASES.keys())
def test_the_policy_of_the_experiment_is_followed_and_told(
    tmp_path: Path, policy: str, script: str, imaged: list[int], what: list[str], ends: bool
) -> None:
    run = bench(tmp_path, policy, Failing(script))
    if ends:
        with pytest.raises(AcquisitionFailed, match="stuck"):
            run.run()
    else:
        run.run()
    assert [line.split()[1] for line in run.scope.log] == [ALL[index] for index in imaged]
    assert told(run) == what
    assert [line["what"] for line in run.lines("order")] == what  # the record has it
    assert [event.what for event in run.news if isinstance(event, Decided)] == what
    assert len(run.session.warnings) == len(what)  # and the report


def test_a_microscope_that_does_not_come_back_ends_the_run_with_what_failed_first(tmp_path: Path) -> None:
    run = bench(tmp_path, SKIP, Failing(".x..", returns=False))
    with pytest.raises(AcquisitionFailed, match="stuck"):
        run.run()
    (line,) = run.lines("order")
    assert line["what"] == "the run ends" and "the camera is gone" in str(line["why"])


def test_a_revisit_that_fails_leaves_the_others(tmp_path: Path) -> None:
    run = Bench(tmp_path, EXPERIMENT, Failing("....x"))
    run.run()
    assert [line for line in run.scope.log if "Phase" not in line] == [
        "NFH p00_001 1",
        "DAPI p00_003 1",
        "NFH p00_003 1",
    ]
    assert told(run) == ["skip this stack"]
    (dose,) = [line for line in run.lines("dose") if line["channel"] == "DAPI" and line["position"] == ALL[1]]
    assert dose["exposure_ms"] == 50  # it may have been exposed, so its light is booked


def test_an_action_that_fails_is_noted_as_failed(tmp_path: Path) -> None:
    trigger = """
triggers:
  - name: bright
    when: {measurement: {kind: mean_intensity, label: nuclei}, above: 0.5}
    do: {kind: image, channels: [DAPI], exposure_ms: 5}
    at_most: 1
"""
    run = Bench(tmp_path, EXPERIMENT.partition("choose:")[0] + trigger, Failing("...x"))
    run.run()
    assert [line for line in run.scope.log if "DAPI" in line] == []
    assert [str(line["done"])[:7] for line in run.lines("decision") if line["done"] != "nothing"] == [
        "failed:"
    ]
    assert told(run) == ["skip this stack"]


def test_a_full_disk_is_no_failure_of_the_microscope(tmp_path: Path) -> None:
    class Full(Failing):
        def acquire(self, request: StackRequest) -> None:
            raise StorageError("the disk is full")

    run = bench(tmp_path, SKIP, Full(""))
    with pytest.raises(StorageError):
        run.run()
    assert told(run) == ["the run ends"]
