"""An experiment with several models: every field is asked of all, and no model hides another's labels."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import acq_isl
from acq_isl.errors import AcqIslError, ExperimentError, ModelError
from acq_isl.experiment.experiment import Experiment
from acq_isl.manifest import Label
from acq_isl.session import engine as run_engine
from acq_isl.session.engine import choose_models, remote_labels
from acq_isl.session.preflight import check_labels, local_labels
from acq_isl.stack import Prediction, Refusal
from acq_isl.storage.prediction_store import load as load_prediction
from acq_isl.storage.prediction_store import stored
from acq_isl.stream.messages import Offer, Wanted, Welcome
from doubles import tiny_model as tiny

RUN = """
name: several
microscope: {kind: simulated, specimen: {kind: synthetic, seed: 1}, camera_px: [96, 96]}
optics: {modality: phase contrast, polarity: dark}
overview:
  grid_plan: {rows: 1, columns: 3}
  z_plan: {range: 6, step: 1.5}
  channels: [{config: Phase, exposure: 5}]
models: MODELS
engine: {kind: local, threads: 1}
choose: {k: 1, measurement: {kind: mean_intensity, label: soma}}
revisit: {channels: [{config: DAPI, exposure: 20}, {config: NFH, exposure: 20}]}
triggers:
  - name: axons of the second
    when: {measurement: {kind: mean_intensity, label: second/axons}, above: -1}
    do: {kind: image, channels: [MAP2], exposure_ms: 20}
truth: {nuclei: DAPI, first/axons: NFH, second/axons: NFH}
"""


def model(folder: Path, name: str, *labels: str, polarity: str = "dark") -> Path:
    found = tuple(Label(name=one, marker="X", color="#56b4e9") for one in labels)
    changes = {"name": name, "labels": found, "polarity": polarity}
    path = folder / f"{name}.onnx"
    path.write_bytes(tiny.content(manifest=tiny.MANIFEST.model_copy(update=changes)))
    return path


def experiment(folder: Path, models: list[str], **changes: object) -> Experiment:
    text = RUN.replace("MODELS", "[" + ", ".join(models) + "]")
    return Experiment.model_validate({**yaml.safe_load(text), "output": folder, **changes})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [
        str(model(folder, "first", "nuclei", "axons")),
        f"second={model(folder, 'other', 'soma', 'axons')}",
        str(model(folder, "upside-down", "mitochondria", "glia", polarity="bright")),
    ]


def run(folder: Path, models: list[str], **changes: object) -> acq_isl.RunResult:
    """Without the seconds that it takes to find the fastest engine for each model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_engine, "SERVE", (*run_engine.SERVE, "--backend", "onnxruntime"))
        return acq_isl.run(experiment(folder, models, **changes))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, files: list[str]) -> acq_isl.RunResult:
    return run(tmp_path_factory.mktemp("runs"), files)


def test_labels_of_all_that_predict_are_in_the_record(result: acq_isl.RunResult) -> None:
    for field in result.record.fields:
        assert isinstance(field.outcome, Prediction)
        assert field.outcome.labels == ("nuclei", "first/axons", "soma", "second/axons")
        (refused,) = field.without
        assert isinstance(refused, Refusal) and refused.model == "upside-down"
        assert any(one.startswith("upside-down refused this stack: ") for one in field.outcome.warnings)
    assert result.record.label_models["soma"] == "second"
    assert len(set(result.record.model_colors.values())) == len(result.record.model_colors)


def test_a_field_that_one_model_refused_does_not_count_as_predicted(result: acq_isl.RunResult) -> None:
    counts = result.record.counts
    assert (counts.captured, counts.predicted, counts.refused, counts.spooled) == (18, 0, 15, 0)
    assert counts.captured == counts.refused + counts.not_for_prediction and counts.lost == 0


def test_rules_look_at_labels_of_any_model(result: acq_isl.RunResult) -> None:
    values = {
        field.info.key.position: field.outcome.label("soma").mean()
        for field in result.record.fields
        if isinstance(field.outcome, Prediction)
    }
    assert result.chosen == (max(values, key=lambda name: values[name]),)
    acted = [one for one in result.record.decisions if one["kind"] == "decision"]
    assert sum(one["done"] == "done" for one in acted) == 1 and len(acted) == 3, "once for each field"
    assert all("second/axons" in one["why"] for one in acted)


def test_every_models_prediction_is_stored_with_its_own_name_and_labels(result: acq_isl.RunResult) -> None:
    store = result.folder / "predictions.ome.zarr"
    names = stored(store)
    assert len(names) == 6 and {name.partition("Phase")[2] for name in names} == {"first", "second"}
    kept = [load_prediction(store, name) for name in names]
    assert {(one.model, one.model_name, one.labels) for one in kept} == {
        ("first", "first 1", ("nuclei", "axons")),
        ("second", "other 1", ("soma", "axons")),
    }


def test_report_and_scorecard_name_the_model_of_every_label(result: acq_isl.RunResult) -> None:
    card = result.record.scorecard
    assert card is not None
    # The truth of "axons" is held against both; nobody knows the truth of "soma".
    assert {(one.label, one.model) for one in card.labels} == {
        ("nuclei", "first"),
        ("first/axons", ""),
        ("second/axons", ""),
    }
    html = re.sub(r"\s+", " ", result.report.read_text(encoding="utf-8"))
    for words in (
        "soma (predicted), second",
        "nuclei (predicted by first)",
        "second/axons (predicted)",
        "upside-down: ",
    ):
        assert words in html
    assert "first 1" in html and "other 1" in html and "as second" in html
    compared = {one.label: one for one in result.record.comparisons}
    assert set(compared) == {"nuclei", "first/axons", "second/axons"}


def test_the_experiment_as_run_reads_back(result: acq_isl.RunResult, files: list[str]) -> None:
    again = Experiment.from_yaml(result.folder / "experiment.yaml")
    assert again.models == tuple(files) == again.model_files


def test_a_deadline_of_the_field_leaves_its_stack_on_disk_for_the_late_models(
    tmp_path: Path, files: list[str]
) -> None:
    late = run(tmp_path, files[:2], deadline_ms=1e-3)
    counts = late.record.counts
    assert counts.predicted + counts.spooled == 15 and counts.spooled > 0 and counts.lost == 0
    assert len(list((late.folder / "spool").iterdir())) == counts.spooled // 5
    told = {one.reason for field in late.record.fields for one in field.without}
    assert any("no prediction was begun within" in one for one in told)


# --- before anything moves -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model": "demo"}, "either 'model' or 'models'"),
        ({"models": [""]}, "models"),
        ({"deadline_ms": 0}, "deadline_ms"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    text = yaml.safe_dump({**yaml.safe_load(RUN.replace("MODELS", "[demo, other]")), **change})
    with pytest.raises(ExperimentError, match=words):
        Experiment.from_text(text)


def test_a_label_of_two_models_must_say_whose_it_is(tmp_path: Path, files: list[str]) -> None:
    wrong = experiment(tmp_path, files, truth={"axons": "NFH"})
    with pytest.raises(ExperimentError) as told:
        check_labels(wrong, local_labels(wrong))
    assert told.value.fix == "did you mean 'first/axons' or 'second/axons'?"


def test_objects_of_a_network_are_refused_before_anything_moves(tmp_path: Path, files: list[str]) -> None:
    choose = {"k": 1, "measurement": {"kind": "object_count", "label": "first/axons"}}
    wrong = experiment(tmp_path, files, choose=choose)
    with pytest.raises(ExperimentError, match="length, area_fraction or mean_intensity"):
        check_labels(wrong, local_labels(wrong))


@pytest.mark.parametrize(
    "models, words", [(["demo", "demo"], "different names"), (["a=/no.onnx"], "no.onnx")]
)
def test_models_that_cannot_be_had_are_errors(tmp_path: Path, models: list[str], words: str) -> None:
    with pytest.raises(AcqIslError, match=words):
        local_labels(experiment(tmp_path, models))


def offer(name: str, *labels: str) -> Offer:
    found = tuple(Label(name=one, marker="X") for one in labels)
    manifest = tiny.MANIFEST.model_copy(update={"name": "m", "labels": found})
    return Offer(name=name, manifest=manifest.model_dump_json(), model_sha256="ab" * 32, engine="cpu")


def test_models_of_a_running_server_are_asked_for_by_name(tmp_path: Path) -> None:
    welcome = Welcome(attempt=0, credit=2, models=(offer("x", "axons"), offer("y", "axons"), offer("z", "k")))
    remote = {"kind": "remote", "address": "tcp://127.0.0.1:1"}
    some = experiment(tmp_path, ["z", "y"], engine=remote)
    labels = remote_labels(some, welcome)
    assert labels.names == ("k", "axons")
    assert choose_models(some, labels) == Wanted(models=("z", "y"))
    with pytest.raises(ModelError, match="has no model 'q'"):
        remote_labels(experiment(tmp_path, ["z", "q"], engine=remote), welcome)
    plain = Experiment.from_text("name: one\noverview: {channels: [Phase]}\nengine: {kind: none}\n")
    assert choose_models(plain, remote_labels(plain, welcome)) == Wanted()
    assert np.array_equal(remote_labels(plain, welcome).names, ("axons",))
