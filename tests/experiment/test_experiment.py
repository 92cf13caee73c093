"""The experiment file: shorthand accepted, everything else refused with the nearest valid key."""

from __future__ import annotations

from pathlib import Path

import pytest

from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment, RecordedSpecimen, SimulatedMicroscope

MINIMAL = """
name: test
overview:
  channels: [{config: Phase, exposure: 10}]
"""
FULL = """
name: nuclei
microscope:
  kind: simulated
  specimen: {kind: recorded, folder: ~/stacks, z_step_um: 1.5}
  camera_px: [256, 320]
optics: {modality: phase contrast, polarity: dark}
overview:
  stage_positions: [{x: 0, y: 0, z: 0, name: A1}]
  grid_plan: {rows: 3, columns: 3}
  z_plan: {range: 18, step: 1.5}
  time_plan: {interval: 60, loops: 2}
  channels: [{config: Phase, exposure: 10}]
model: demo
engine: {kind: remote, address: "tcp://127.0.0.1:5599"}
choose: {k: 3, measurement: {kind: object_count, label: nuclei}}
revisit:
  channels: [{config: DAPI, exposure: 50}]
triggers:
  - when: {measurement: {kind: area_fraction, label: nuclei}, above: 0.2}
    do: {kind: image, channels: [DAPI], exposure_ms: 20}
truth: {nuclei: DAPI}
limits: {x_um: [-1000, 1000], exposure_ms: 100}
"""


def test_defaults_are_those_of_a_careful_user() -> None:
    experiment = Experiment.from_text(MINIMAL)
    assert experiment.microscope.kind == "running"
    assert experiment.engine.kind == "local"
    assert experiment.overview.axis_order == ("t", "p", "g", "c", "z")
    assert experiment.choose is None and not experiment.triggers


def test_everything_is_understood() -> None:
    experiment = Experiment.from_text(FULL)
    microscope = experiment.microscope
    assert isinstance(microscope, SimulatedMicroscope) and microscope.camera_px == (256, 320)
    assert isinstance(microscope.specimen, RecordedSpecimen)
    assert microscope.specimen.folder == Path("~/stacks").expanduser()
    assert experiment.choose is not None and experiment.choose.k == 3


@pytest.mark.parametrize("text", [MINIMAL, FULL], ids=["minimal", "full"])
def test_the_file_written_beside_a_run_repeats_it(text: str) -> None:
    experiment = Experiment.from_text(text)
    again = Experiment.from_text(experiment.to_yaml())
    assert again.model_dump(exclude={"overview", "revisit"}) == experiment.model_dump(
        exclude={"overview", "revisit"}
    )
    assert [dict(e.index) for e in again.overview] == [dict(e.index) for e in experiment.overview]
    assert again.to_yaml() == experiment.to_yaml()


BAD = {
    "unknown key": (MINIMAL + "optic: {}\n", "unknown key 'optic'; did you mean 'optics'"),
    "unknown key inside": (
        FULL.replace("polarity", "polarty"),
        "unknown key 'polarty' in optics; did you mean 'polarity'",
    ),
    "unknown key in a union": (
        FULL.replace("address", "adress"),
        "'adress' in engine.*did you mean 'address'",
    ),
    "unknown key of useq": (FULL.replace("z_plan", "zplan"), "unknown key 'zplan'; did you mean 'z_plan'"),
    "unknown key deep in useq": (
        FULL.replace("columns: 3", "colums: 3, columns: 3"),
        "'colums' in grid_plan; did you mean 'columns'",
    ),
    "unknown key of a channel": (
        FULL.replace("config: DAPI", "config: DAPI, exposre: 3"),
        "'exposre' in channels",
    ),
    "unknown key in a trigger": (
        FULL.replace("above: 0.2", "abov: 0.2"),
        "'abov' in triggers.0.when; did you mean 'above'",
    ),
    "wrong kind": (FULL.replace("kind: remote", "kind: cloud"), "engine"),
    "wrong value": (
        MINIMAL + "prediction_timeout_s: -1\n",
        "prediction_timeout_s: Input should be greater than 0",
    ),
    "no overview": ("name: test\n", "overview: Field required"),
    "no YAML": ("name: [", "(?s)not valid YAML.*line 1"),
    "a list": ("- 1\n", "is not an experiment"),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD.keys())
def test_bad_files_say_what_to_change(text: str, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        Experiment.from_text(text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"cannot be read.*check the path"):
        Experiment.from_yaml(tmp_path / "none.yaml")
