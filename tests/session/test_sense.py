"""Numbers and names that cannot mean what they say are found before anything moves."""

from __future__ import annotations

from pathlib import Path

import pytest

from acq_isl.errors import AcqIslError, ActionRefused, ExperimentError
from acq_isl.experiment.experiment import Experiment, RunningMicroManager
from acq_isl.hooks import check_function, open_microscope, user_calls
from acq_isl.session.preflight import prepare

TEXT = """
name: sensible
microscope: {kind: simulated, camera_px: [64, 64]}
optics: {modality: phase contrast, polarity: dark}
overview:
  grid_plan: {rows: 1, columns: 3}
  z_plan: {range: 18, step: 1.5}
  channels: [{config: Phase, exposure: 5}]
choose: {k: 1, measurement: {kind: object_count, label: nuclei, above: 0.2}}
revisit: {channels: [{config: DAPI, exposure: 20}]}
triggers:
  - name: crowded
    when: {measurement: {kind: area_fraction, label: nuclei, above: 0.2}, above: 0.06}
    do: {kind: image, channels: [MAP2], exposure_ms: 20}
truth: {nuclei: DAPI, dendrites: MAP2}
"""
WHEN = "{measurement: {kind: area_fraction, label: nuclei, above: 0.2}, above: 0.06}"
MEAN = "{measurement: {kind: mean_intensity, label: nuclei}, "
DO = "{kind: image, channels: [MAP2], exposure_ms: 20}"


@pytest.fixture(scope="module")
def scope():
    with open_microscope(Experiment.from_text(TEXT).microscope) as opened:
        yield opened


def doubts(scope, *changes: tuple[str, str]) -> tuple[str, ...]:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return prepare(Experiment.from_text(text), scope)[1]


def test_a_sensible_experiment_raises_no_doubt(scope) -> None:
    assert doubts(scope) == ()


WRONG = {
    "per cent": ((WHEN, WHEN.replace("above: 0.06", "above: 20")), "can never act.*fractions of 1"),
    "at the very end": ((WHEN, WHEN.replace("above: 0.06", "above: 1")), "can never act"),
    "fewer than none": ((WHEN, MEAN + "below: 0}"), "can never act.*is never below 0"),
    "more cells than light": ((WHEN, MEAN + "above: 20}"), "relative intensity from 0 to 1"),
    "level in counts": (
        ("nuclei, above: 0.2}}\nrevisit", "nuclei, above: 400}}\nrevisit"),
        "brighter than 400",
    ),
    "level of a network": (
        (WHEN, "{measurement: {kind: length, label: axons, above: 3}, above: 9}"),
        "than 3",
    ),
    "no length at all": ((WHEN, "{measurement: {kind: length, label: axons}, below: 0}"), "um from 0 on"),
    "level of a segmenter": (
        ("nuclei, above: 0.2}}\nrevisit", "nuclei, segmenter: {kind: watershed, above: 20}}}\nrevisit"),
        "brighter than 20",
    ),
    "objects larger than the field": (
        ("above: 0.2}}", "above: 0.2, min_area_um2: 5000}}"),
        "as large as the field",
    ),
    "truth nobody images": (
        ("dendrites: MAP2}", "dendrites: NFH}"),
        "channel that this experiment never images",
    ),
    "truth misspelt": (("nuclei: DAPI", "nuclei: DAPY"), "did you mean 'DAPI'"),
    "more than there are": (("k: 1", "k: 4"), "more fields are to be chosen than there are.*at most 3"),
    "from top to bottom": (
        ("modality: phase contrast", "modality: DIC"),
        "would refuse p00_000.*the stack is DIC",
    ),
    "too few planes": (("range: 18", "range: 3"), "would refuse p00_000"),
    "no z at all": (("  z_plan: {range: 18, step: 1.5}\n", ""), "would refuse p00_000"),
    "too coarse": (("range: 18, step: 1.5", "range: 40, step: 10"), "would refuse p00_000"),
    "no such module": (
        (DO, "{kind: call, function: 'nowhere_at_all:act'}"),
        "cannot be imported.*beside the",
    ),
    "no such function": (
        (DO, "{kind: call, function: 'math:squareroot'}"),
        "did you mean sqrt|has no function",
    ),
    "a preset that is not there": ((DO, DO.replace("MAP2", "MAP3")), "MAP2"),
    "a preset of the overview": (
        (DO, DO.replace("MAP2", "Phase")),
        "'crowded' images Phase, which the overview",
    ),
    "another preset": ((DO, "{kind: set_preset, group: Channel, preset: DAPY}"), "DAPI"),
    "light beyond the limits": (
        (DO + "\n", DO.replace("20}", "50}") + "\nlimits: {exposure_ms: 30}\n"),
        "not done: image this field in MAP2.*at most 30 ms",
    ),
    "channels that the overview has not": (
        (DO, "{kind: change, channels: [DAPI]}"),
        "only channels that the overview has not.*Phase.*DAPI",
    ),
    "a budget of a misspelt preset": (
        (DO + "\n", DO + "\nlimits: {light: {budgets: [{per: run, presets: [DAPi], ms: 50}]}}\n"),
        "a preset that there is not: DAPi",
    ),
    "other arguments": ((DO, "{kind: call, function: 'math:sqrt'}"), "math:sqrt takes other arguments"),
}


@pytest.mark.parametrize("change, says", WRONG.values(), ids=WRONG.keys())
def test_what_can_never_come_true_is_an_error(scope, change: tuple[str, str], says: str) -> None:
    without_truth = ("dendrites: MAP2}", "dendrites: DAPI}") if change[0] == DO else ("", "")
    with pytest.raises((ExperimentError, ActionRefused), match=says):
        doubts(scope, change, without_truth)


ODD = {
    "always": ((WHEN, MEAN + "above: -1}"), "'crowded' acts on every field"),
    "hardly ever": (("nuclei, above: 0.2}}\nrevisit", "nuclei, above: 1.2}}\nrevisit"), "hardly any pixel"),
    "every pixel": (
        ("nuclei, above: 0.2}}\nrevisit", "nuclei, above: -2}}\nrevisit"),
        "every pixel of nuclei",
    ),
    "no choice at all": (("k: 1", "k: 3"), "every field is chosen"),
    "finer steps": (("range: 18, step: 1.5", "range: 18, step: 1"), "were resampled"),
    "optics not stated": (("polarity: dark", "polarity: unknown"), "was not stated"),
}


@pytest.mark.parametrize("change, says", ODD.values(), ids=ODD.keys())
def test_what_is_odd_is_a_doubt(scope, change: tuple[str, str], says: str) -> None:
    assert any(says in doubt for doubt in doubts(scope, change))


def test_an_action_that_leaves_the_limits_on_some_fields_is_a_doubt(scope) -> None:
    high = DO.replace("exposure_ms: 20", "exposure_ms: 20, z_offsets_um: [30]")
    positions = "stage_positions: [{x: 0, y: 0, z: 0}, {x: 50, y: 0, z: 5}, {x: 99, y: 0, z: 0}]"
    found = doubts(
        scope,
        (DO, high),
        ("grid_plan: {rows: 1, columns: 3}", positions),
        ("truth: {", "limits: {z_um: [-50, 32]}\ntruth: {"),
    )
    assert any("would leave the limits on 1 of 3 fields" in doubt for doubt in found)


def test_a_revisit_without_a_choice_is_a_doubt(scope) -> None:
    line = "choose: {k: 1, measurement: {kind: object_count, label: nuclei, above: 0.2}}\n"
    assert any("revisit is never used" in doubt for doubt in doubts(scope, (line, "")))


def test_a_real_microscope_wants_limits(scope) -> None:
    real = Experiment.from_text(TEXT).model_copy(update={"microscope": RunningMicroManager()})
    assert "limits do not state x_um, y_um, z_um, exposure_ms" in prepare(real, scope)[1][0]
    limits = "limits: {x_um: [-9e3, 9e3], y_um: [-9e3, 9e3], z_um: [-90, 90], exposure_ms: 100}"
    safe = Experiment.from_text(TEXT + limits).model_copy(update={"microscope": RunningMicroManager()})
    assert prepare(safe, scope)[1] == ()


FUNCTIONS = """
import asyncio
def right(decision, prediction): return decision.what
def more(decision, prediction, note="", *rest, **options): ...
def any_number(*arguments): ...
def one(decision): ...
def three(decision, prediction, microscope): ...
def named(*, decision, prediction): ...
async def later(decision, prediction): ...
def stepwise(decision, prediction): yield 1
NUMBER = 3
"""


@pytest.mark.parametrize("name", ["right", "more", "any_number"])
def test_functions_beside_the_experiment_are_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    check_function(f"mine:{name}", ("decision", "prediction"), tmp_path)


@pytest.mark.parametrize(
    "name, says",
    [
        ("one", "takes other arguments; wanted: def one\\(decision, prediction\\)"),
        ("three", "missing a required argument: 'microscope'"),
        ("named", "takes other arguments"),
        ("later", "would do nothing"),
        ("stepwise", "would do nothing"),
        ("NUMBER", "has no function 'NUMBER'"),
        ("wright", "did you mean 'right'"),
    ],
)
def test_functions_that_take_other_arguments_are_refused(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    with pytest.raises(ActionRefused, match=says):
        check_function(f"mine:{name}", ("decision", "prediction"), tmp_path)


def test_the_file_beside_the_experiment_is_taken_whatever_was_imported_before(tmp_path: Path) -> None:
    for folder, number in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"def right(decision, prediction={number}): ...")
    check_function("mine:right", ("decision",), tmp_path / "a")
    (tmp_path / "b" / "mine.py").write_text("def other(): ...")
    with pytest.raises(ActionRefused, match="has no function 'right'"):
        check_function("mine:right", ("decision",), tmp_path / "b")


def test_a_module_that_fails_says_how(tmp_path: Path) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0")
    with pytest.raises(AcqIslError, match="ZeroDivisionError: division by zero"):
        check_function("broken_module:act", (), tmp_path)


@pytest.mark.parametrize("line, says", [("exit(3)", "SystemExit"), ("raise KeyboardInterrupt", "Keyboard")])
def test_a_module_that_would_end_the_process_is_refused(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "ending_module.py").write_text(f"from sys import exit\n{line}\n")
    with pytest.raises(ActionRefused, match=f"importing ending_module raised {says}"):
        check_function("ending_module:act", (), tmp_path)


def test_a_module_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "waiting_module.py").write_text("import threading\nthreading.Event().wait(5)\n")
    monkeypatch.setattr(user_calls, "_IMPORT_S", 0.05)
    with pytest.raises(ActionRefused, match="importing waiting_module did not end"):
        check_function("waiting_module:act", (), tmp_path)


def test_an_experiment_file_knows_its_folder(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(TEXT)
    experiment = Experiment.from_yaml(tmp_path / "experiment.yaml")
    assert experiment.folder == tmp_path.resolve()
    assert experiment.model_copy(update={"name": "other"}).folder == tmp_path.resolve()
    assert Experiment.from_text(TEXT).folder == Path.cwd()
