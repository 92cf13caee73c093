from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from acq_isl.cli.app import cli
from acq_isl.engines import describe
from acq_isl.experiment import Experiment
from acq_isl.experiment.starter import STAGES, Answers, Channel, Stage, write_experiment
from acq_isl.rules.label_names import Labels, RunModel
from acq_isl.session.explain import lint, plan_without_scope

DEMO = describe("demo").manifest
ANSWERS = Answers(
    "survey", "a first one", "simulated", "demo", DEMO, "nuclei", "Channel", Channel("Phase", 10.0),
    Channel("DAPI", 50.0), (10.0, -20.4, 3.0),
)  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("label", DEMO.label_names)
def test_every_stage_begins_without_a_remark(stage: Stage, label: str) -> None:
    experiment = Experiment.from_text(write_experiment(replace(ANSWERS, stage=stage, label=label), "x.yaml"))
    labels = Labels([RunModel("", DEMO)])
    assert lint(experiment, plan_without_scope(experiment), labels) == ()
    assert experiment.truth == {label: "DAPI"}


@pytest.mark.parametrize("name", ["on", "n: 5", "it's", '"', "5", "a #b", "{x}", "Zellen, grün", "a\\b"])
def test_names_are_written_so_that_they_are_read_back(name: str) -> None:
    answers = replace(ANSWERS, name=name, fluorescence=Channel(name, 50.0))
    experiment = Experiment.from_text(write_experiment(answers, "x.yaml"))
    assert experiment.name == name and experiment.truth["nuclei"] == name


def test_a_file_is_written_from_answers_and_from_questions(tmp_path: Path) -> None:
    """Nothing is opened for the second: its file exists."""
    file = tmp_path / "mine.yaml"
    options = ["--microscope", "simulated", "--transmitted", "Phase", "--label", "axons"]
    asked = CliRunner().invoke(cli, ["new", str(file), *options], input="watch\nMAP2\n12\n40\n")
    assert asked.exit_code == 0, asked.output
    experiment = Experiment.from_yaml(file)
    assert experiment.schedule is not None and experiment.truth == {"axons": "MAP2"}
    assert [channel.exposure for channel in experiment.overview.channels] == [12.0]
    again = CliRunner().invoke(cli, ["new", str(file), "--yes"])
    assert "is there already" in str(again.exception)


@pytest.mark.parametrize("option", [["--stage", "serve"], ["--label", "cells"], ["--microscope", "none"]])
def test_what_there_is_not_is_refused(tmp_path: Path, option: list[str]) -> None:
    answer = CliRunner().invoke(cli, ["new", str(tmp_path / "x.yaml"), "--yes", *option])
    assert "there is no" in str(answer.exception)


EXPLAINED = """
name: x
overview: {channels: [{config: Phase, exposure: 10}]}
triggers:
  - name: t
    when: WHEN
    do: {kind: set_preset, group: Channel, preset: DAPI}
"""
SETS = "{kind: set_preset, group: Channel, preset: DAPI}"
COUNT = "{kind: object_count, label: nuclei}"


@pytest.mark.parametrize(
    "when, code, says",
    [
        (f"{{measurement: {COUNT}, above: 5}}", 0, "trigger 't': when, for a field, number of objects"),
        ("{measurement: {kind: area, label: nuclei}, above: 5}", 0, "mind the trigger 't' gives no unit"),
        (
            f"{{all: [{{measurement: {COUNT}, above: 5}}, {{measurement: {COUNT}, below: 3}}]}}",
            2,
            "wrong the trigger 't' is contradictory",
        ),
        (f"{{measurement: {COUNT}, above: 0.5}}", 0, "is above 0.5 objects"),
        ("{measurement: {kind: length, label: glia}, above: 5, unit: um}", 2, "there is no label 'glia'"),
    ],
)
def test_an_experiment_is_explained(tmp_path: Path, when: str, code: int, says: str) -> None:
    (tmp_path / "x.yaml").write_text(EXPLAINED.replace("WHEN", when))
    answer = CliRunner().invoke(cli, ["explain", str(tmp_path / "x.yaml")])
    assert answer.exit_code == code, answer.output
    assert says in answer.output


def test_an_action_against_the_limits_is_explained(tmp_path: Path) -> None:
    when = f"{{measurement: {COUNT}, above: 5}}"
    text = EXPLAINED.replace("WHEN", when).replace(SETS, "{kind: image, channels: [DAPI], exposure_ms: 500}")
    (tmp_path / "x.yaml").write_text(text + "limits: {exposure_ms: 100}\n")
    answer = CliRunner().invoke(cli, ["explain", str(tmp_path / "x.yaml")])
    assert answer.exit_code == 2, answer.output  # the dry run refuses it, too
    assert "would be refused" in answer.output and "triggers.0.do" in answer.output
