"""The recipes of ``examples/recipes``: each can be carried out, and one is, also when the engine fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import useq

from acq_isl import run
from acq_isl.engines import describe
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.experiment.faults import EngineDead, EngineSlow, Fault
from acq_isl.experiment.simulated import SimulatedMicroscope, SyntheticSpecimen
from acq_isl.hooks import open_microscope
from acq_isl.record import RunRecord
from acq_isl.rules import Best
from acq_isl.session.preflight import prepare

FOLDER = Path(__file__).parents[2] / "examples" / "recipes"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe(name: str, output: Path) -> Experiment:
    experiment = Experiment.from_yaml(FOLDER / f"{name}.yaml").model_copy(update={"output": output})
    wanted = {label for rule in measurements(experiment) for label in rule.labels}
    missing = wanted - {label.name for label in describe(experiment.model).manifest.labels}
    if missing:
        pytest.skip(f"the model that ships does not predict {', '.join(sorted(missing))}")
    return experiment


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_passes_its_dry_run(name: str, tmp_path: Path) -> None:
    experiment = recipe(name, tmp_path)
    with open_microscope(experiment.microscope) as scope:
        plan, doubts = prepare(experiment, scope)
    assert plan and not [doubt for doubt in doubts if "never" in doubt]


def run_small(name: str, output: Path, *faults: Fault) -> RunRecord:
    """A recipe on four fields, the one or two best of which are chosen."""
    experiment = recipe(name, output)
    microscope, choose = experiment.microscope, experiment.choose
    assert isinstance(microscope, SimulatedMicroscope) and isinstance(choose, Best)
    grid = useq.GridRowsColumns(rows=2, columns=2)
    changes = {
        "overview": experiment.overview.replace(grid_plan=grid),
        "microscope": microscope.model_copy(update={"faults": faults}),
        "choose": choose.model_copy(update={"k": 1}),
        "prediction_timeout_s": 30.0 if faults else 600.0,
    }
    return run(experiment.model_copy(update=changes)).record


@pytest.mark.slow
def test_the_survey_images_the_best_field_within_its_light(tmp_path: Path) -> None:
    record = run_small("survey", tmp_path)
    assert [field.rank for field in record.fields if field.chosen] == [1], record.warnings
    assert record.scorecard is not None
    assert record.scorecard.light.fluorescence_ms == {"DAPI": 50.0, "MAP2": 100.0}
    assert [sentence.split(":")[0] for sentence in record.light] == ["DAPI", "MAP2"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [EngineDead(), EngineSlow(ms=60_000.0)], ids=["killed", "slow"])
def test_without_its_engine_the_survey_spends_no_fluorescence_light(tmp_path: Path, fault: Fault) -> None:
    record = run_small("survey", tmp_path, fault)
    assert not any(field.chosen for field in record.fields) and not record.light
    assert any("no choice was made" in warning for warning in record.warnings)
    assert record.counts.captured == 4 * 13 and record.counts.open == 0 and not record.counts.lost


def watch_dying(output: Path, fault: Fault) -> RunRecord:
    """The recipe on four fields in which every cell is dying, with an engine that fails."""
    experiment = recipe("dying", output)
    microscope = experiment.microscope
    assert isinstance(microscope, SimulatedMicroscope) and isinstance(microscope.specimen, SyntheticSpecimen)
    life = microscope.specimen.life.model_copy(update={"prevalence": 1.0})
    specimen = microscope.specimen.model_copy(update={"life": life})
    changes = {
        "overview": experiment.overview.replace(grid_plan=useq.GridRowsColumns(rows=2, columns=2)),
        "microscope": microscope.model_copy(update={"faults": (fault,), "specimen": specimen}),
        "prediction_timeout_s": 30.0,
        "require": 0.0,
    }
    record = run(experiment.model_copy(update=changes)).record
    assert record.counts.captured >= 4 * 13 and record.counts.open == record.counts.lost == 0
    assert record.scorecard is not None
    spent_ms = record.scorecard.light.fluorescence_ms
    assert sum(spent_ms.values()) <= 2000, "the budget of the run"
    return record


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_watching_goes_on_without_an_engine_and_spends_no_light(tmp_path: Path) -> None:
    record = watch_dying(tmp_path, EngineDead())
    assert record.counts.spooled == 4 * 13 and not record.light
    assert not [line for line in record.decisions if line["kind"] == "decision" and line["action"]]
    assert any("engine" in warning for warning in record.warnings)
