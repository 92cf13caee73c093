"""Counts fitted to fields whose objects are known, and the model file that keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.engines.model_file import read_model
from acq_isl.manifest import Label
from acq_isl.processing.counting import count_objects, count_on_stain
from acq_isl.stack import NetworkLabel, ObjectCounting
from acq_isl.training import counts
from acq_isl.training.calibrate import calibrate, write_manifest
from acq_isl.training.counts import CountedField, fit_counts
from acq_isl.training.data.dataset import Field

PIXEL_UM, SIDE_PX = 0.5, 160


def drawn(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Predicted mean, dimmed, blurred and with false spots, truth, and how many nuclei were drawn apart."""
    rng = np.random.default_rng(seed)
    places = [(y, x) for y in range(12, 150, 15) for x in range(12, 150, 15)]
    chosen = rng.permutation(len(places))[: rng.integers(8, 60)]
    truth, found = np.zeros((2, SIDE_PX, SIDE_PX), np.float32)
    for number in chosen:
        truth[places[number]] = rng.uniform(0.7, 1.0)
        found[places[number]] = truth[places[number]] * rng.uniform(0.2, 0.6)
    found[rng.integers(SIDE_PX, size=4), rng.integers(SIDE_PX, size=4)] = 0.25
    disc = np.hypot(*np.mgrid[-6:7, -6:7]) < 6
    truth, found = (ndimage.grey_dilation(image, footprint=disc) for image in (truth, found))
    return ndimage.gaussian_filter(found, 2), ndimage.gaussian_filter(truth, 1), len(chosen)


def test_a_stain_is_counted_as_drawn() -> None:
    for seed in range(5):
        _, truth, there = drawn(seed)
        assert count_on_stain(truth, PIXEL_UM) == there


def test_counts_are_true_and_doubted_rightly_on_fields_that_were_not_fitted_to() -> None:
    fields = [CountedField.of(str(seed), *drawn(seed)[:2], PIXEL_UM) for seed in range(30)]
    fitted = fit_counts("nuclei", fields, "drawings")
    assert fitted is not None and fitted.fields == 30 and fitted.judged_on == "drawings"
    others = [drawn(seed) for seed in range(100, 140)]
    found = np.array([count_objects(fitted, mean, PIXEL_UM) for mean, _, _ in others])
    true = np.array([there for _, _, there in others], float)
    away = np.abs(found[:, 0] - true) / found[:, 1]
    assert abs((found[:, 0] - true).mean()) < 0.05 * true.mean()
    assert np.corrcoef(found[:, 0], true)[0, 1] > 0.97
    assert 0.5 < np.mean(away <= 1) < 0.9 and np.mean(away <= 2) > 0.85
    assert fitted.within_2_sd > 0.85 and abs(fitted.bias) < 0.05


@pytest.mark.parametrize("case", ["too few", "one culture", "no objects", "blind"])
def test_what_cannot_be_fitted_is_said_and_left_unknown(case: str, caplog: pytest.LogCaptureFixture) -> None:
    fields = []
    for seed in range(5 if case == "too few" else 12):
        mean, truth, _ = drawn(seed)
        if case == "blind":
            mean = drawn(seed + 50)[0]
        unit = "A1" if case == "one culture" else str(seed)
        fields.append(CountedField.of(unit, mean, truth * (case != "no objects"), PIXEL_UM))
    assert fit_counts("nuclei", fields, "drawings") is None
    assert "nuclei are not calibrated" in caplog.text


@pytest.mark.parametrize("fields", [6, 9])
def test_held_out_fields_tell_how_objects_are_counted(fields: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each field by the network that has not seen it; a few fields are cut in halves."""
    asked, judged = [], []

    def predict(network: object, x: NDArray[np.float16]) -> tuple[NDArray[np.float32], None]:
        asked.append((network, int(x[0, 0, 0])))
        return np.stack([drawn(int(x[0, 0, 0]))[0]] * 2), None

    monkeypatch.setattr(counts, "predict", predict)
    for seed in range(fields):
        truth = np.rint(drawn(seed)[1] * 255).astype(np.uint8)
        x, bright = np.full((3, SIDE_PX, SIDE_PX), seed, np.float16), np.zeros((0, 2), np.int32)
        judged.append((f"network {seed}", Field(x, np.stack([truth, truth]), bright), f"field {seed}"))
    labels = (Label(name="nuclei", marker="DAPI"), Label(name="axons", marker="NFH"))
    found, network = counts.count_held_out(judged, labels, PIXEL_UM)
    assert asked == [(f"network {seed}", seed) for seed in range(fields)]
    assert isinstance(found, ObjectCounting) and network == NetworkLabel("axons")
    assert found.fields == (12 if fields == 6 else 9) and found.correlation > 0.9
    assert f"{fields} held-out fields" in found.judged_on
    assert ("halves" in found.judged_on) == (fields == 6)


def test_the_demo_knows_its_counts_and_its_networks() -> None:
    counts = read_model("demo").info.manifest.counts
    nuclei, *networks = sorted(counts, key=lambda each: each.label, reverse=True)
    assert isinstance(nuclei, ObjectCounting) and nuclei.label == "nuclei"
    assert abs(nuclei.bias) <= 0.05 and nuclei.correlation > 0.95
    assert 0.6 <= nuclei.within_1_sd <= 0.76 and nuclei.within_2_sd >= 0.92
    assert set(networks) == {NetworkLabel("axons"), NetworkLabel("dendrites")}


def test_another_manifest_leaves_the_network_as_it_is(tmp_path: Path) -> None:
    file = read_model("demo")
    renamed = file.info.manifest.model_copy(update={"version": "other"})
    write_manifest(file.content, renamed, tmp_path / "other.onnx")
    other = read_model(tmp_path / "other.onnx")
    assert other.info.manifest == renamed and other.info.sha256 != file.info.sha256
    assert onnx.load_from_string(other.content).graph == onnx.load_from_string(file.content).graph


@pytest.mark.slow
def test_a_model_is_calibrated_on_simulated_fields_it_never_saw(tmp_path: Path) -> None:
    manifest = calibrate("demo", tmp_path / "again.onnx", fields=8)
    (counting,) = (each for each in manifest.counts if isinstance(each, ObjectCounting))
    assert counting.fields == 8 and counting.correlation > 0.8
    assert read_model(tmp_path / "again.onnx").info.manifest == manifest
