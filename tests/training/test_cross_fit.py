"""A model learns a microscope, judged on fields that its networks have not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.errors import PairRefused, TrainingFailed
from acq_isl.manifest import Label, Manifest
from acq_isl.training import cross_fit as fitting
from acq_isl.training import fine_tune
from acq_isl.training.cross_fit import CalibrationTask, CrossFit, cross_fit
from acq_isl.training.data.pairs import Item, Nominal, Recording
from acq_isl.training.loop import Training
from acq_isl.training.network import LiveNetwork, NetworkConfig
from acq_isl.training.package import Trained, write_weights
from acq_isl.training.weights import read_pretrained

SIDE_PX, FIELDS, STEPS = 64, 4, 12


def recorded(number: int, brightest: int = 65535) -> Recording:
    rng = np.random.default_rng(number)
    cells = ndimage.gaussian_filter((rng.random((SIDE_PX, SIDE_PX)) > 0.99).astype(float), 3)
    cells /= cells.max()
    stack = 20000 + 9000 * cells * np.array([-1, 0, 1])[:, None, None] + rng.normal(0, 300, (3, *cells.shape))
    stain = np.clip(500 + 9000 * cells + rng.normal(0, 50, cells.shape), 0, brightest)
    return Recording(stack.astype(np.uint16), {"nuclei": stain.astype(np.uint16)}, 0.3, (0.0, 1.5, 3.0))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    network = LiveNetwork(NetworkConfig(3, 1, 4, 2, 8.0))
    torch.nn.init.normal_(network.head.weight, 0, 0.2)
    about = Manifest(
        name="old", version="1", licence="BSD-3-Clause", description="a test", modality="phase contrast",
        polarity="dark", pixel_size_um=0.3, z_offsets_um=(-1.5, 0.0, 1.5), high_pass_um=2.4,
        labels=(Label(name="nuclei", marker="DAPI"),),
        min_tile_px=32, halo_px=32, size_step_px=4, spread_scale=(1.0,), trained_on="nothing",
    )  # fmt: skip
    write_weights(network.eval(), about, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def task(model: Path, load: Callable[[int], Recording] = recorded, **more: Any) -> CalibrationTask:
    items = tuple(
        Item(f"p{at}", None, str(at), lambda at=at: load(at), labels=("nuclei",)) for at in range(FIELDS)
    )
    nominal = Nominal(3, 0.3, 1.5, "DIC", "unknown")
    return CalibrationTask(
        model, items, {"nuclei": "DAPI"}, nominal, "a scope", minutes=0.0001, **{"threads": 1, **more}
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Few steps, small patches, and no file: what would be written."""
    written: list[tuple[Any, ...]] = []

    def keep(*given: Any) -> Path:
        written.append(given)
        return Path("model.onnx")

    monkeypatch.setattr(fitting, "_LEAST_STEPS", STEPS)
    monkeypatch.setattr(fitting, "write_package", keep)
    monkeypatch.setattr(fine_tune, "_CHECKPOINT_EVERY", 5)
    return written


def weights(trained: Trained) -> NDArray[np.float32]:
    return np.concatenate([value.numpy().ravel() for value in trained.network.state_dict().values()])


def test_every_field_is_judged_by_a_network_that_has_not_seen_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[tuple[Any, ...]]
) -> None:
    learned: list[set[str]] = []
    before = fitting.train_network

    def train(setup: Any, start: Any, fields: Any, *more: Any) -> LiveNetwork:
        learned.append({field.name for field in fields})
        return before(setup, start, fields, *more)

    monkeypatch.setattr(fitting, "train_network", train)
    monkeypatch.setattr(fitting, "mean_pearson", lambda setup, network, fields: float(network.training))
    found = cross_fit(task(model), tmp_path / "out")
    # Both starts on the first fold, the better one on the second, and that one on all.
    assert learned == [{"p2", "p3"}, {"p2", "p3"}, {"p0", "p1"}, {"p0", "p1", "p2", "p3"}]
    ((config, division, trained, _),) = quick
    assert config.modality == "DIC" and "calibrated on a scope" in config.description
    assert [item.name for item in division.train] == ["p0", "p1", "p2", "p3"] and len(trained.seen) == FIELDS
    (nuclei,) = found.labels
    assert nuclei.low <= nuclei.r <= nuclei.high and nuclei.as_it_is is not None
    assert nuclei.floor > 0.3  # planes differ where cells are
    assert trained.scores[0].n == FIELDS and found.steps == STEPS and found.refused is None


def test_a_calibration_that_was_interrupted_ends_as_if_it_had_not_been(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[tuple[Any, ...]]
) -> None:
    whole = cross_fit(task(model), tmp_path / "whole")
    advance, steps = Training.advance, []

    def interrupted(training: Training, fields: Any) -> float:
        steps.append(1)
        if len(steps) in (9, 31):
            raise KeyboardInterrupt
        return advance(training, fields)

    monkeypatch.setattr(Training, "advance", interrupted)
    found: CrossFit | None = None
    for _ in range(3):
        try:
            found = cross_fit(task(model), tmp_path / "parts")
        except KeyboardInterrupt:
            continue
    assert found is not None and found.labels == whole.labels
    np.testing.assert_array_equal(weights(quick[0][2]), weights(quick[1][2]))
    assert len(steps) < 2 * 4 * STEPS  # what was done is not done again


def test_the_model_as_it_is_stays_where_nothing_does_better(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[tuple[Any, ...]]
) -> None:
    scores = iter((0.2, 0.3, 0.4))  # adapted, from scratch, as it is
    monkeypatch.setattr(fitting, "mean_pearson", lambda *_: next(scores))
    assert cross_fit(task(model), tmp_path / "out").kept == "the model as it is"
    kept, came = quick[0][2].network.state_dict(), read_pretrained(model).network.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in came.items())


def test_an_average_is_kept_where_it_is_worth_its_time(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[tuple[Any, ...]]
) -> None:
    monkeypatch.setattr(fitting, "mean_pearson", lambda setup, network, fields: network.config.members / 10)
    found = cross_fit(task(model, average=True), tmp_path / "out")
    assert found.slower == 2 and "averaged" in found.kept
    assert quick[0][2].network.config.members == 2


def test_a_saturated_stain_is_refused_before_anything_is_learned(model: Path, tmp_path: Path) -> None:
    def saturated(number: int) -> Recording:
        return recorded(number, brightest=3000)

    with pytest.raises(PairRefused, match="p0: nuclei is saturated"):
        cross_fit(task(model, saturated), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_another_task_in_the_same_folder_is_refused(model: Path, tmp_path: Path) -> None:
    def saturated(number: int) -> Recording:
        return recorded(number, brightest=3000)

    with pytest.raises(PairRefused):
        cross_fit(task(model, saturated), tmp_path / "out")
    with pytest.raises(PairRefused):  # the same task, on a machine that is less busy now
        cross_fit(task(model, saturated, threads=2), tmp_path / "out")
    with pytest.raises(TrainingFailed, match="another model"):
        cross_fit(task(model, saturated, seed=1), tmp_path / "out")
