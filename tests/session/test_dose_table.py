"""The light of each field and object is in a table, by place, whatever the stacks were called."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from acq_isl.errors import StorageError
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Cycle, Optics, Place, cycles
from acq_isl.rules.light import LightLedger
from acq_isl.rules.pixels import PixelToStage
from acq_isl.session.dose_table import FILE, write_doses
from acq_isl.session.fields import Field
from acq_isl.session.summary import Stored
from acq_isl.stack import Prediction, StackInfo, StackKey, StackRequest

PX, PIXEL_UM = 40, 0.5
FOV = PX * PIXEL_UM, PX * PIXEL_UM
TEXT = """
name: doses
overview:
  stage_positions: [{x: 0, y: 0, z: 0, name: a}, {x: 100, y: 0, z: 0, name: b}]
  channels: [{config: Phase, exposure: 10}]
choose: {k: 1, measurement: {kind: object_count, label: nuclei, segmenter: {kind: watershed, above: 0.5}}}
revisit: {channels: [{config: DAPI, exposure: 50}]}
limits: {light: {irradiance_mw_cm2: {DAPI: 40}}}
"""


@dataclass
class Run:
    """What a session has at its end."""

    cycles: tuple[Cycle, ...]
    light: LightLedger
    fields: dict[StackKey, Field] = field(default_factory=dict)
    acquired: list[StackRequest] = field(default_factory=list)


def predicted(request: StackRequest) -> Prediction:
    mean = np.zeros((1, PX, PX), np.float32)
    mean[0, 4:14, 4:14] = mean[0, 25:35, 28:38] = 1.0
    info = StackInfo(request.key, request.z_um, (PX, PX), PIXEL_UM, request.x_um, request.y_um)
    return Prediction(info, ("nuclei",), mean, np.zeros_like(mean), "0" * 64, "fake", "fake")


@pytest.fixture
def run() -> tuple[Experiment, Run]:
    experiment = Experiment.from_text(TEXT)
    plan = cycles(experiment.overview, Place(0.0, 0.0, 0.0, FOV), Optics())
    made = Run(tuple(plan), LightLedger(experiment.limits.light, FOV))
    for request in plan[0].requests:
        made.fields[request.key] = Field(request, answers={"": predicted(request)})
        made.acquired.append(request)
        made.light.book(request, 1)
    return experiment, made


def stain(of: StackRequest, x_um: float, name: str) -> StackRequest:
    key = StackKey(0, name, "DAPI")
    return StackRequest(key, x_um, of.y_um, (0.0,), "Channel", "DAPI", 50.0, predict=False)


def write(tmp_path: Path, run: tuple[Experiment, Run], stored: Stored | None = None) -> tuple[str, ...]:
    experiment, made = run
    asked = stored or Stored(
        lambda _: np.zeros((1, PX, PX), np.uint16), lambda key, _: predicted(made.fields[key].request)
    )
    return write_doses(tmp_path, experiment, made, asked, PixelToStage.nominal(PIXEL_UM))


def rows(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / FILE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_object_has_the_light_of_every_stack_that_covered_it(
    tmp_path: Path, run: tuple[Experiment, Run]
) -> None:
    first = run[1].acquired[0]
    run[1].light.book(stain(first, 0.0, "a"), 2)  # all of the field
    run[1].light.book(stain(first, 10.0, "a_centred"), 1)  # its right half only
    said = write(tmp_path, run)
    found = {(row["position"], row["object"], row["preset"]): float(row["ms"]) for row in rows(tmp_path)}
    assert found == {
        ("a", "", "Phase"): 10, ("a", "", "DAPI"): 150, ("b", "", "Phase"): 10,  # the middle lies on its edge
        ("a", "1", "Phase"): 10, ("a", "1", "DAPI"): 100, ("a", "2", "Phase"): 10, ("a", "2", "DAPI"): 150,
    }  # fmt: skip
    (one,) = [row for row in rows(tmp_path) if row["object"] == "2" and row["preset"] == "DAPI"]
    assert (one["label"], float(one["mj_cm2"])) == ("nuclei", 6.0)
    assert float(one["area_um2"]) == pytest.approx(25.0, abs=2.0)  # its corners are rounded
    assert (float(one["x_um"]), float(one["y_um"])) == pytest.approx((6.5, 5.0), abs=0.5)
    (line,) = said
    assert line.startswith("DAPI, for each of 2 objects of nuclei (predicted): 0.125 s, at most 0.15 s")


def test_a_prediction_that_is_not_there_leaves_the_light_of_the_field(
    tmp_path: Path, run: tuple[Experiment, Run]
) -> None:
    run[1].light.book(stain(run[1].acquired[0], 0.0, "a"), 1)

    def gone(key: StackKey, model: str) -> Prediction:
        raise StorageError("it is not on disk")

    assert write(tmp_path, run, Stored(lambda _: np.zeros((1, PX, PX), np.uint16), gone)) == ()
    assert [(row["position"], row["object"]) for row in rows(tmp_path)] == [("a", ""), ("a", ""), ("b", "")]
