"""The demo on somebody's own recording."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import tifffile

import acq_isl
from acq_isl.cli.sim import on_recording
from acq_isl.errors import StorageError
from acq_isl.experiment.experiment import Experiment, NoEngine, RecordedSpecimen, SimulatedMicroscope
from acq_isl.hooks import open_measured, read_slices

RNG = np.random.default_rng(3)
SIZE = (48, 64)


def demo() -> Experiment:
    text = (resources.files("acq_isl") / "templates" / "demo.yaml").read_text(encoding="utf-8")
    return Experiment.from_text(text, "the demo")


def recording(folder: Path, channels: tuple[str, ...] = ("Phase", "DAPI", "Cy5"), planes: int = 4) -> Path:
    """One ImageJ file for each channel: 0.65 um, 2 um apart."""
    folder.mkdir(exist_ok=True)
    for name in channels:
        count = planes if name == "Phase" else 1
        tifffile.imwrite(
            folder / f"{name}.tif",
            RNG.integers(0, 65536, (count, *SIZE), dtype=np.uint16),
            imagej=True,
            resolution=(1 / 0.65, 1 / 0.65),
            metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"},
        )
    return folder


def test_the_demo_images_what_was_recorded(tmp_path: Path) -> None:
    experiment, told = on_recording(demo(), RecordedSpecimen(folder=recording(tmp_path)))
    assert told == "4 planes of 64 x 48 pixels, 0.65 um each, 2 um apart; fluorescence: Cy5, DAPI"
    microscope, plan = experiment.microscope, experiment.overview.z_plan
    assert isinstance(microscope, SimulatedMicroscope) and microscope.camera_px == SIZE
    assert plan is not None and list(plan) == [-3.0, -1.0, 1.0, 3.0]
    assert experiment.revisit is not None
    assert [channel.config for channel in experiment.revisit.channels] == ["Cy5", "DAPI"]
    assert experiment.truth == {"nuclei": "DAPI"} and len(experiment.triggers) == 1
    assert experiment.optics.modality == "unknown"
    assert Experiment.from_text(experiment.to_yaml()).overview.z_plan == plan


def test_without_fluorescence_nothing_is_revisited(tmp_path: Path) -> None:
    experiment, told = on_recording(demo(), RecordedSpecimen(folder=recording(tmp_path, ("Phase",), 1)))
    assert told.endswith("fluorescence: none")
    assert (experiment.revisit, experiment.triggers, experiment.truth) == (None, (), {})
    assert experiment.overview.z_plan is None


def test_images_smaller_than_any_camera_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "Phase.tif", np.ones((3, 15, 64), np.uint16), photometric="minisblack")
    settings = RecordedSpecimen(folder=tmp_path, z_step_um=1, pixel_size_um=0.3)
    with pytest.raises(StorageError, match=r"too small for a camera; wanted: 16 .* got: 15 x 64"):
        on_recording(demo(), settings)


def test_lengths_that_nobody_knows_are_asked_for(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "Phase.tif", np.ones((3, *SIZE), np.uint16), photometric="minisblack")
    with pytest.raises(StorageError, match="--z-step"):
        on_recording(demo(), RecordedSpecimen(folder=tmp_path))
    with pytest.raises(StorageError, match="--pixel-size"):
        on_recording(demo(), RecordedSpecimen(folder=tmp_path, z_step_um=1))
    _, told = on_recording(demo(), RecordedSpecimen(folder=tmp_path, z_step_um=1, pixel_size_um=0.3))
    assert "0.3 um each, 1 um apart" in told


def test_a_run_measures_the_recorded_counts_and_its_data_can_be_replayed(tmp_path: Path) -> None:
    folder = recording(tmp_path / "mine")
    experiment, _ = on_recording(demo(), RecordedSpecimen(folder=folder))
    changes = {"engine": NoEngine(), "output": tmp_path / "runs", "choose": None, "revisit": None}
    result = acq_isl.run(experiment.model_copy(update=changes))
    (middle,) = (f.info.key.position for f in result.record.fields if (f.info.x_um, f.info.y_um) == (0, 0))
    axes = [{"time": 0, "position": middle, "channel": "Phase", "z": index} for index in range(4)]
    with open_measured(result.folder / "measured_1") as dataset:
        stack = read_slices(dataset, axes)
    np.testing.assert_array_equal(stack, tifffile.imread(folder / "Phase.tif"))
    again, _ = on_recording(demo(), RecordedSpecimen(folder=result.folder, position=middle))
    assert list(again.overview.z_plan or ()) == [-3.0, -1.0, 1.0, 3.0]
