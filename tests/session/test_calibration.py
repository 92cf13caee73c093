"""What is imaged for a calibration, on the simulated microscope."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from acq_isl.errors import AcqIslError, ExperimentError, StorageError
from acq_isl.experiment.experiment import Experiment
from acq_isl.hooks import OpenMicroscope, open_microscope
from acq_isl.manifest import Manifest
from acq_isl.session.calibration import (
    CalibrationPlan,
    fit_model,
    image_fields,
    imaged_pairs,
    keep_plan,
    plan_calibration,
)
from doubles import tiny_model

TEXT = """
name: small
microscope: {kind: simulated, camera_px: [32, 48]}
optics: {modality: DIC, polarity: unknown}
overview:
  grid_plan: {rows: 1, columns: 2}
  z_plan: {range: 6, step: 1.5}
  channels: [{config: Phase, exposure: 10}]
revisit: {channels: [{config: DAPI, exposure: 50}, {config: NFH, exposure: 60}]}
limits: {x_um: [-1000, 1000], y_um: [-1000, 1000], z_um: [-50, 50], exposure_ms: 100}
"""


def small(old: str = "", new: str = "") -> Experiment:
    return Experiment.from_text(TEXT.replace(old, new) if old else TEXT)


@pytest.fixture(scope="module")
def scope() -> Iterator[OpenMicroscope]:
    with open_microscope(small().microscope) as opened:
        yield opened


def plan(scope: OpenMicroscope, fields: int = 4) -> CalibrationPlan:
    return plan_calibration(small(), scope, {"nuclei": "DAPI"}, fields)


def test_a_grid_grows_and_only_the_stains_asked_for_are_exposed(scope: OpenMicroscope) -> None:
    found = plan(scope, 6)
    assert len({(field.x_um, field.y_um) for field in found.fields}) == 6
    assert found.light == (("Phase", 5, 10.0), ("DAPI", 1, 50.0))
    own = plan_calibration(small(), scope, {"a": "DAPI", "b": "MAP2"}, 2, exposure_ms=20.0)
    assert len(own.fields) == 2 and own.light[1:] == (("DAPI", 1, 20.0), ("MAP2", 1, 20.0))


@pytest.mark.parametrize(
    ("experiment", "truth", "says"),
    [
        (small(), {"nuclei": "MAP2"}, "nobody says how long MAP2"),
        (small(), {"nuclei": "DAPY"}, "exposed|DAPY"),
        (
            small("grid_plan: {rows: 1, columns: 2}", "stage_positions: [{x: 0, y: 0, z: 0}]"),
            {"nuclei": "DAPI"},
            "too few",
        ),
        (small("exposure_ms: 100", "exposure_ms: 40"), {"nuclei": "DAPI"}, "50"),
    ],
)
def test_what_cannot_be_imaged_is_said_before(
    scope: OpenMicroscope, experiment: Experiment, truth: dict[str, str], says: str
) -> None:
    with pytest.raises(AcqIslError, match=says):
        plan_calibration(experiment, scope, truth, 4)


def test_the_model_is_for_the_stacks_of_the_microscope(scope: OpenMicroscope) -> None:
    manifest: Manifest = tiny_model.MANIFEST
    nominal = fit_model(plan(scope), manifest)
    assert (nominal.planes, nominal.modality) == (manifest.planes, "DIC")
    assert nominal.z_step_um == (1.5 if manifest.planes == 5 else manifest.z_step_um)
    more = manifest.model_copy(update={"z_offsets_um": tuple(np.arange(-30.0, 31.0, 5.0).tolist())})
    with pytest.raises(ExperimentError, match="cannot be calibrated"):
        fit_model(plan(scope), more)


def test_imaged_fields_are_pairs_and_are_not_imaged_again(scope: OpenMicroscope, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    folder = tmp_path / "calibrated"
    wanted = keep_plan(plan(scope, 3), scope.description, folder)
    part = CalibrationPlan(wanted.experiment, wanted.fields[:1], wanted.truth, 0.3, ())
    image_fields(part, scope, folder, lambda *done: None)  # and then it was interrupted
    again = keep_plan(plan(scope, 3), scope.description, folder)
    assert again.fields == wanted.fields
    image_fields(again, scope, folder, lambda done, total, text: told.append((done, total)))
    assert told == [(2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    assert [path.name for path in sorted(folder.glob("measured_*"))] == ["measured_1", "measured_2"]
    pairs = [item.load() for item in imaged_pairs(again, folder)]
    assert [pair.stack.shape for pair in pairs] == [(5, 32, 48)] * 3
    assert all(pair.labels["nuclei"].shape == (32, 48) and pair.pixel_size_um == 0.3 for pair in pairs)
    assert pairs[0].z_um == tuple(sorted(pairs[0].z_um))
    with pytest.raises(StorageError, match="another calibration"):
        keep_plan(plan(scope, 4), scope.description, folder)
