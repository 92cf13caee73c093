"""Labels for a smaller model: blends where models predict, true labels where they must stay."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from typer.testing import CliRunner

from acq_isl.cli.app import cli
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import ExperimentError, PairRefused
from acq_isl.evaluation.ground_truth import GroundTruth
from acq_isl.evaluation.inputs import find_items
from acq_isl.evaluation.pseudo_labels import Blend, write_pseudo_labels
from acq_isl.evaluation.results import Settings
from acq_isl.manifest import Training
from acq_isl.training.data.geometry import make_stack
from acq_isl.training.data.pairs import Nominal
from acq_isl.training.data.sources import TiffSource
from doubles import tiny_model as tiny


@pytest.fixture
def model(tmp_path):
    return tiny.write(tmp_path)


@pytest.fixture
def plate(tmp_path, model):
    """Wells A1 to A3, one field each; no model takes the stack of A3, which is white all over."""
    with OnnxEngine(model) as engine:
        manifest = engine.manifest
    for number, well in enumerate(("A1", "A2", "A3")):
        folder = tmp_path / "plate" / well
        folder.mkdir(parents=True)
        rng = np.random.default_rng(number)
        step = manifest.z_step_um
        pixels = np.array(tiny.stack((96, 96), seed=number).pixels)
        if well == "A3":
            pixels[:] = 65535
        lengths = dict.fromkeys(("PhysicalSizeX", "PhysicalSizeY"), manifest.pixel_size_um)
        metadata = {"axes": "ZYX", "PhysicalSizeZ": step} | lengths
        tifffile.imwrite(folder / "stack.ome.tif", pixels, ome=True, metadata=metadata)
        for label in manifest.label_names:
            truth = rng.integers(100, 4000, (96, 96)).astype(np.uint16)
            tifffile.imwrite(folder / f"{label}.tif", truth)
    return find_items([tmp_path / "plate"], manifest)


def read_back(made):
    found = yaml.safe_load(made.pairs.read_text(encoding="utf-8"))
    items = [i for one in found["data"] for i in TiffSource.model_validate(one).items(Nominal(1, 0.3, 1.5))]
    return found, {item.well: item for item in items}


def test_labels_are_blends_that_training_reads(tmp_path, model, plate):
    made = write_pseudo_labels([model, model], plate, tmp_path / "out", Blend(0.7, ["A2"], threads=1))
    assert len(made.blended) == 1
    assert [why for _, why in made.untouched if why != "held out"], "A3 is refused, with the reason"
    found, items = read_back(made)
    assert found["split"] == {"by": "well", "held_out": ["A2"]}
    with OnnxEngine(model, threads=1) as engine:
        truth = GroundTruth.match(engine.manifest, plate, Settings())
        for item in plate:
            recording, written = item.load(), items[item.well].load()
            np.testing.assert_array_equal(written.stack, recording.stack)
            assert written.pixel_size_um == pytest.approx(recording.pixel_size_um)
            assert written.z_step_um == pytest.approx(recording.z_step_um)
            for label, scaled in truth.scale(recording).items():
                if item.well == "A1":
                    prediction = engine.predict(make_stack(recording, item.name, engine.manifest))
                    mean = prediction.mean[prediction.labels.index(label)]
                    low, high = truth.ranges[label]
                    counts = low + (0.7 * mean + 0.3 * scaled) * (high - low)
                    np.testing.assert_allclose(written.labels[label], counts, rtol=1e-5)
                    assert np.abs(0.7 * mean - 0.7 * scaled).max() > 0.01
                else:
                    np.testing.assert_array_equal(written.labels[label], recording.labels[truth.keys[label]])


def test_what_was_taught_is_marked(tmp_path, model, plate):
    made = write_pseudo_labels([model], plate, tmp_path / "out", Blend(0.5, threads=1))
    digest, marks = hashlib.sha256(Path(model).read_bytes()).hexdigest(), {}
    for path in (tmp_path / "out").rglob("*.ome.tif"):
        if path.name != "stack.ome.tif":
            with tifffile.TiffFile(path) as file:
                said = file.ome_metadata
            marks.setdefault(path.parent.parent.name, set()).add("acq_isl_taught" in said and digest in said)
    assert marks["A1"] == {True}
    assert marks["A3"] == {False}
    assert "split" not in yaml.safe_load(made.pairs.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"share": 0.0}, ExperimentError, "out of range"),
        ({"share": 1.5}, ExperimentError, "out of range"),
        ({"held_out": ["A9"]}, PairRefused, "A9"),
        ({"held_out": ["A2", "plate/A1"]}, ExperimentError, "wells and fields"),
    ],
)
def test_what_cannot_be_taught_is_explained(tmp_path, model, plate, more, error, says):
    with pytest.raises(error, match=says):
        write_pseudo_labels([model], plate, tmp_path / "out", Blend(**more))


def test_a_folder_in_use_is_not_written_into(tmp_path, model, plate):
    with pytest.raises(ExperimentError, match="something in it"):
        write_pseudo_labels([model], plate, tmp_path / "plate")


def test_the_command(tmp_path, model, plate):
    folder = tmp_path / "plate"
    given = ["teach", str(model), "--pairs", str(folder), "-o", str(tmp_path / "out"), "--held-out", "A2"]
    said = CliRunner().invoke(cli, given)
    assert said.exit_code == 0, said.output
    assert "1 fields taught" in said.output
    assert "held out" in said.output
    assert (tmp_path / "out" / "taught.yaml").exists()


def test_a_teacher_that_has_seen_what_is_held_out_is_told(tmp_path, plate):
    seen = tiny.MANIFEST.model_copy(update={"training": Training(wells=("A1", "A2"))})
    (tmp_path / "seen").mkdir()
    model = tiny.write(tmp_path / "seen", manifest=seen)
    made = write_pseudo_labels([model], plate, tmp_path / "out", Blend(held_out=["A2"], threads=1))
    assert len(made.leaks) == 1
    assert made.leaks[0].endswith("A2")
    given = ["teach", str(model), "--pairs", str(tmp_path / "plate"), "-o", str(tmp_path / "again")]
    assert CliRunner().invoke(cli, [*given, "--held-out", "A2"]).exit_code == 1
    assert CliRunner().invoke(cli, [*given[:-1], str(tmp_path / "third")]).exit_code == 0


def in_memory(plate, number, recording=None, **changes):
    """A field of the plate under another name or place, perhaps with parts that cannot be trusted."""
    changed = replace(plate[number].load(), **(recording or {}))
    return replace(plate[number], load=lambda: changed, **changes)


def test_other_times_of_a_place_that_is_held_out_are_not_taught(tmp_path, model, plate):
    items = [in_memory(plate, 0, name="t0", field="p"), in_memory(plate, 1, name="t1", field="p")]
    items.append(in_memory(plate, 1, name="other"))
    made = write_pseudo_labels([model], items, tmp_path / "out", Blend(held_out=["t0"], threads=1))
    assert made.blended == ("other",)
    split = yaml.safe_load(made.pairs.read_text(encoding="utf-8"))["split"]
    assert split == {"by": "field", "held_out": ["A1/0000-t0", "A2/0001-t1"]}


def test_what_cannot_be_trusted_is_predicted_or_left_out(tmp_path, model, plate):
    known = np.zeros((96, 96), bool)
    known[:, 48:] = True
    masked = {"valid": {"nuclei": known}}
    items = [in_memory(plate, number, recording=masked) for number in (0, 1)]
    made = write_pseudo_labels([model], items, tmp_path / "out", Blend(0.7, ["A2"], threads=1))
    _, written = read_back(made)
    assert set(written["A2"].load().labels) == {"axons"}
    with OnnxEngine(model, threads=1) as engine:
        truth = GroundTruth.match(engine.manifest, items, Settings())
        prediction = engine.predict(make_stack(items[0].load(), "A1", engine.manifest))
    low, high = truth.ranges["nuclei"]
    mean = low + prediction.mean[prediction.labels.index("nuclei")] * (high - low)
    label = written["A1"].load().labels["nuclei"]
    np.testing.assert_allclose(label[:, :48], mean[:, :48], rtol=1e-5)
    assert np.abs(label[:, 48:] - mean[:, 48:]).max() > 0.01 * (high - low)


def test_a_field_that_cannot_be_read_is_told_and_the_others_are_taught(tmp_path, model, plate):
    def damaged():
        raise PairRefused("sizes differ")

    items = [replace(plate[1], load=damaged), plate[0]]
    made = write_pseudo_labels([model], items, tmp_path / "out", Blend(threads=1))
    assert made.blended == (plate[0].name,)
    assert "sizes differ" in dict(made.left_out)[plate[1].name]


def test_wells_that_would_become_one_are_refused(tmp_path, model, plate):
    items = [replace(plate[0], well="p/A1"), replace(plate[1], well="p-A1")]
    with pytest.raises(PairRefused, match="as one"):
        write_pseudo_labels([model], items, tmp_path / "out")
